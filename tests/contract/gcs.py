"""Google Cloud Storage's emulator on loopback."""

import http.client
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bdnfs.origins.base import Origin
from bdnfs.spec.config import UpstreamConfig
from bdnfs.spec.source import Source, parse_source
from tests.contract.servers import Files, Site, free_port


class GcsSite(Site):
    """An emulator that listens on port; its bucket is `models`."""

    name = "gs"

    def __init__(self) -> None:
        self.port = self.reached = free_port()
        self._made: set[str] = set()

    @property
    def argv(self) -> list[str]:
        command = str(Path(sys.prefix, "bin/gcp-storage-emulator"))
        return [command, "start", "--host", "127.0.0.1", "--port", str(self.port), "--in-memory", "--quiet"]

    def put(self, collection: str, files: Files) -> None:
        self.make("models")
        for key in self.keys("models", f"{collection}/"):
            self.request("DELETE", f"/storage/v1/b/models/o/{quote(key, safe='')}")
        for path, content in files.items():
            self.put_object("models", f"{collection}/{path}", content)

    def put_object(self, bucket: str, key: str, content: bytes) -> None:
        self.make(bucket)
        target = f"/upload/storage/v1/b/{bucket}/o?uploadType="
        if content:
            self.request("POST", f"{target}media&name={quote(key, safe='')}", content)
            return
        # The emulator takes an empty body only in this way, and one with bytes of every kind only in the other.
        name, kind = json.dumps({"name": key}), "Content-Type: application/json"
        body = f"--x\r\n{kind}\r\n\r\n{name}\r\n--x\r\n{kind}\r\n\r\n\r\n--x--\r\n"
        self.request("POST", f"{target}multipart", body.encode(), "multipart/related; boundary=x")

    def make(self, bucket: str) -> None:
        """Make a bucket, unless it is there."""
        if bucket not in self._made:
            self.request(
                "POST", "/storage/v1/b?project=p", json.dumps({"name": bucket}).encode(), "application/json"
            )
            self._made.add(bucket)

    def keys(self, bucket: str, prefix: str) -> list[str]:
        found = json.loads(self.request("GET", f"/storage/v1/b/{bucket}/o?prefix={quote(prefix, safe='')}"))
        return [item["name"] for item in found["items"]]

    def source(self, collection: str, path: str | None = None) -> Source:
        return parse_source(f"gs://models/{collection}")

    def upstream(self, **fields: Any) -> UpstreamConfig:
        return UpstreamConfig(**{"google": {"STORAGE_EMULATOR_HOST": f"127.0.0.1:{self.reached}"}, **fields})

    def dead(self, collection: str, path: str | None = None) -> Origin:
        return self.open(collection, google={"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{free_port()}"})

    def request(
        self, method: str, target: str, body: bytes = b"", kind: str = "application/octet-stream"
    ) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, target, body, {"Content-Type": kind})
            with connection.getresponse() as reply:
                found = reply.read()
                if reply.status >= 300:
                    raise RuntimeError(f"{method} {target}: {reply.status} {found[:500]!r}")
                return found
        finally:
            connection.close()
