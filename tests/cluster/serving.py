"""One node as its peers have it: the real `bdnfs node` before a mirror in a directory, asked over HTTP."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from bdnfs.mirror.contents import Contents
from bdnfs.mirror.opening import open_store
from bdnfs.spec.upstream import UpstreamConfig
from bdnfs.volume.records import CHUNK_TYPE
from tests.contract.servers import free_port

BDNFS = str(Path(sys.executable).with_name("bdnfs"))
TOKEN = "a-token-that-nobody-may-see-5f0e"
WAIT_S = 60.0


class Reply(NamedTuple):
    """What a node answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def tier(self) -> str | None:
        return self.headers.get("bdnfs-tier")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class MirrorDirectory:
    """Chunks in a directory that nodes have for their mirror."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._contents = Contents(open_store(str(path), UpstreamConfig(), None), "default", "weights")

    def put(self, *chunks: bytes) -> list[str]:
        """Put chunks; return their digests."""
        digests = [blake3(chunk).hexdigest() for chunk in chunks]
        for digest, chunk in zip(digests, chunks, strict=True):
            self._contents.put(f"b3:{digest}", chunk, CHUNK_TYPE)
        return digests

    def object(self, digest: str) -> Path:
        return self.path / self._contents.key(f"b3:{digest}")


class Serving:
    """A node of its own cache, port and config, started and ended as a program."""

    def __init__(self, place: Path, mirror: MirrorDirectory) -> None:
        self.place, self.mirror, self.port = place, mirror, free_port()
        place.mkdir(parents=True, exist_ok=True)
        self.cache, self.share = place / "cache", place / "cache" / "share"
        self.token_file = place / "token"
        self.token_file.write_text(TOKEN + "\n")
        self.token_file.chmod(0o600)
        self.tls: ssl.SSLContext | None = None
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.environment = {**kept, "HOME": str(place), "BDNFS_CONFIG": str(place / "config.yaml")}
        self.configure()
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def configure(self, cluster: dict[str, Any] | None = None, **sections: Any) -> None:
        """Write the config: alone in its cluster, but for what is given; None takes a field out."""
        fields = {"members": [self.address], "listen": self.address, "token_file": str(self.token_file)}
        fields |= {"share": "1GiB", **(cluster or {})}
        content = {
            "cache": {"directory": str(self.cache), "reserve": 0},
            "mirror": str(self.mirror.path),
            "cluster": {name: value for name, value in fields.items() if value is not None},
            **sections,
        }
        kept = {name: value for name, value in content.items() if value is not None}
        (self.place / "config.yaml").write_text(json.dumps(kept))

    def program(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start another `bdnfs` command of this node's."""
        with (self.place / "command").open("wb") as err:
            process = subprocess.Popen(
                [BDNFS, *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
            )
        self._started.insert(0, process)
        return process

    def run(self, *words: str) -> str:
        """Run another `bdnfs` command of this node's; return what it says."""
        out, _ = self.program(*words).communicate(timeout=WAIT_S)
        said = (self.place / "command").read_text()
        assert self._started[0].returncode == 0, said
        assert TOKEN not in said + out.decode()
        return out.decode()

    def launch(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start `bdnfs node`; what it says goes to files."""
        with (self.place / "out").open("wb") as out, (self.place / "err").open("wb") as err:
            process = subprocess.Popen(
                [BDNFS, "node", *words], env=self.environment, stdout=out, stderr=err, start_new_session=True
            )
        self._started.append(process)
        return process

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start `bdnfs node`; return when it listens."""
        process = self.launch(*words)
        until(lambda: b"listening" in self.out or process.poll() is not None, "the node to listen")
        assert process.poll() is None, self.err
        return process

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        return self._started[-1]

    @property
    def out(self) -> bytes:
        return (self.place / "out").read_bytes()

    @property
    def err(self) -> str:
        return (self.place / "err").read_text()

    def stop(self, number: int = signal.SIGTERM) -> float:
        """End it; return how many seconds that took; check that it ended well, and said no secret."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(WAIT_S)
        assert number == signal.SIGKILL or code == 0, self.err
        assert "Traceback" not in self.err
        assert TOKEN not in self.err + self.out.decode()
        return time.monotonic() - began

    def refused(self, code: int, *says: str) -> str:
        """Start it; check that it ends with code and one line that holds all of says."""
        process = self.launch()
        found = process.wait(WAIT_S)
        assert found == code, (found, self.err, self.out)
        (line,) = [line for line in self.err.splitlines() if not line.startswith("bdnfs: warning")]
        assert all(text in line for text in says), line
        return line

    def end(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait(WAIT_S)
            if process.stdout is not None:
                process.stdout.close()

    # -- asking -----------------------------------------------------------------------------------

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls, timeout=WAIT_S)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)

    def ask(
        self,
        path: str,
        headers: dict[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
    ) -> Reply:
        """Ask with the token, unless headers say otherwise."""
        connection = self.connect()
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **(headers or {})})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())
        finally:
            connection.close()

    def chunk(self, digest: str, size: int, start: int = 0, *, held: bool = False, **more: str) -> Reply:
        """Ask for a chunk. more: headers, `_` for `-`."""
        path = f"/v1/chunks/default/weights/{digest}{'?held=1' if held else ''}"
        headers = {name.replace("_", "-"): value for name, value in more.items()}
        return self.ask(path, {"Range": f"bytes={start}-{start + size - 1}", **headers})

    @property
    def facts(self) -> dict[str, Any]:
        return dict(self.ask("/v1/node").json)

    def kept(self) -> set[str]:
        """The digests of the chunks in its share."""
        return {path.name for path in self.share.glob("*/*/*/*")}


def until(condition: Any, what: str, limit_s: float = WAIT_S) -> Any:
    """Wait for what another process brings about; return it; fail after limit_s."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(0.02)
    return found


def children(pid: int) -> Sequence[int]:
    """The pids of a process's children."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Say whether a process runs; one that has ended and nobody has waited for doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
