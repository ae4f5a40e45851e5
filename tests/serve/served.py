"""A mirror filled without an upstream, and `bdnfs serve-volumes` before it: the real command, a process of its own."""

import http.client
import json
import os
import random
import re
import signal
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.manifest.model import FileEntry, Manifest
from bdnfs.mirror.ingest import Ingest
from bdnfs.mirror.store import Store
from bdnfs.mirror.versions import VersionRow, Versions
from bdnfs.spec.volume import VolumeRef
from tests.commands.node import BDNFS, ROOT, until

WAIT_S = 60.0
KEYS = {"acme": "acme-PLANTED-key-that-nobody-sees", "rival": "rival-PLANTED-key-that-nobody-sees"}

_dice = random.Random(414)
FILES = {
    "config.json": b'{"architectures": ["Tiny"]}\n',
    "data/empty.txt": b"",
    "data/a b+c%41.txt": b"blanks and more",
    "model.safetensors": _dice.randbytes(CHUNK_BYTES + 4321),
}


def fill(
    store: Store,
    tenant: str,
    volume: str,
    files: Mapping[str, bytes],
    revision: str = "one",
    branch: str = "main",
) -> VersionRow:
    """Mirror files as a version of a volume in the namespace `weights`."""
    entries = tuple(FileEntry(path, len(files[path])) for path in sorted(files))
    listing = Manifest(f"hf://{tenant}/{volume}", "a test", revision, entries)
    ingest = Ingest(Versions(store, tenant), VolumeRef("weights", volume), listing, branch, "")
    for entry in entries:
        data = files[entry.path]
        starts = range(0, len(data), CHUNK_BYTES)
        ingest.put_file(entry, [ingest.put_chunk(data[start : start + CHUNK_BYTES]) for start in starts])
    return ingest.publish()


class Answer(NamedTuple):
    """A response. headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """S3's error code."""
        found = re.search(rb"<Code>(\w+)</Code>", self.body)
        return found[1].decode() if found else ""


class Served:
    """`bdnfs serve-volumes` under way.

    environment: more of it; files_max: how many it may open; config: the sections of the node's config
    """

    def __init__(
        self,
        place: Path,
        *words: str,
        environment: Mapping[str, str] | None = None,
        files_max: int | None = None,
        **config: Any,
    ) -> None:
        place.mkdir(parents=True)
        self.place = place
        config = {"secrets": {"directory": str(place / "secrets")}, **config}
        (place / "config.yaml").write_text(json.dumps(config))
        if config.get("serve", {}).get("keys"):
            (place / "secrets").mkdir(mode=0o700)
            for tenant, name in config["serve"]["keys"].items():
                (place / "secrets" / name).write_text(f"{KEYS[tenant]}\n")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(place),
            "BDNFS_CONFIG": str(place / "config.yaml"),
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }
        limit = [] if files_max is None else ["prlimit", f"--nofile={files_max}"]
        self._words = [*limit, BDNFS, "serve-volumes", *words]
        self._issued = [*KEYS.values()]
        self.start()

    def start(self) -> None:
        """Start it, on any port that is free unless words say another; return at once."""
        words = self._words if "--listen" in self._words else [*self._words, "--listen", "127.0.0.1:0"]
        with (self.place / "out").open("wb") as out, (self.place / "err").open("wb") as err:
            self.process = subprocess.Popen(
                words,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return (self.place / "out").read_text()

    @property
    def err(self) -> str:
        return (self.place / "err").read_text()

    @property
    def url(self) -> str:
        """Where it listens, once it does."""

        def found() -> re.Match[str] | None:
            assert self.process.poll() is None, self.err
            return re.search(r"listening at (https?://\S+), ", self.out)

        return str(until(found, "the service to listen")[1])

    def ends(self, code: int) -> str:
        """Wait for it to end with this code; return what it said on standard error."""
        assert self.process.wait(WAIT_S) == code, self.err
        assert "Traceback" not in self.err
        return self.err

    def close(self) -> None:
        """End it as an operator does; what it wrote holds no key, token or signature."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.ends(0)
        for text in (self.out, self.err):
            assert not [each for each in self._issued if each in text]
            assert "Traceback" not in text
            assert "Signature=" not in text
            assert "a bug in bdnfs" not in text

    # ---- plain HTTP ----------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Answer:
        """Send one request with exactly this target."""
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=WAIT_S, context=tls
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT_S)
        try:
            connection.putrequest(
                method, target, skip_host="host" in (headers or {}), skip_accept_encoding=True
            )
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read())
        finally:
            connection.close()

    def token(self, tenant: str, *volumes: str, key: str | None = None) -> Answer:
        """Ask for a token that names volumes."""
        body = {"scopes": ["PULL"], "namespaces": ["weights"], "volumes": volumes}
        headers = {"authorization": f"Bearer {key or KEYS[tenant]}", "content-type": "application/json"}
        answer = self.ask("POST", "/v1/volumes/token", headers, json.dumps(body).encode())
        if answer.status == 200:
            self._issued.append(answer.json["token"])
        return answer

    def resolve(self, token: str, ref: str) -> Answer:
        answer = self.ask("POST", f"/v1/volumes/resolve?ref={ref}", {"authorization": f"Bearer {token}"})
        if answer.status == 200:
            self._issued += [answer.json["origin"][name] for name in ("session_token", "secret_access_key")]
        return answer

    def opened(self, tenant: str, volume: str) -> dict[str, Any]:
        """Return what `resolve` answers for a volume's head."""
        token = self.token(tenant, volume).json["token"]
        found: dict[str, Any] = self.resolve(token, f"bdn:weights/{volume}").json
        return found


__all__ = ["FILES", "KEYS", "Answer", "Served", "fill"]
