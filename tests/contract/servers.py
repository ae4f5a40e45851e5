"""Real upstream stores on loopback, each as one Site that every origin test runs against."""

import contextlib
import getpass
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bdnfs.manifest.model import FileEntry
from bdnfs.origins.base import Origin
from bdnfs.origins.generic import GenericOrigin
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import Secret, UpstreamConfig
from bdnfs.spec.source import Source, parse_source
from benchmarks.servers.hub import HubServer

Files = Mapping[str, bytes]
Placed = tuple[Origin, str | None, FileEntry]
START_DEADLINE_S = 100.0
_PORTS_EACH = 2000
_numbers = itertools.count(os.getpid())


def free_port() -> int:
    """Return a port of loopback that nobody listens on now, and that nobody else is about to.

    Not one of those that Linux gives to connections (32768 on), and each pytest worker has its own: a server takes
    seconds to start, and whoever listens there by then would be taken for it.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(_PORTS_EACH):
        port = 10_000 + worker % 10 * _PORTS_EACH + next(_numbers) % _PORTS_EACH
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("all ports of this worker are taken")


@contextlib.contextmanager
def child(argv: list[str], port: int) -> Iterator[None]:
    """Run a server until the block ends; it has to listen on port in time."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            while not listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise RuntimeError(f"{argv[0]} did not start: {said.read().decode()}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listens(port: int) -> bool:
    """Return whether somebody takes connections on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Site(ABC):
    """One upstream store. A collection is what one source names: a repository, a prefix, a directory.

    Where a proxy stands before the server, `reached` (`endpoint` at a Hub) is its port; `put` goes past it.

    one_file:  a source names a single file
    immutable: what was listed stays readable when the collection changes
    ranged:    byte ranges are answered
    """

    name = ""
    one_file = False
    immutable = False
    ranged = True

    @abstractmethod
    def put(self, collection: str, files: Files) -> None:
        """Make files all of the collection's content; what changes is told apart from what was."""

    @abstractmethod
    def source(self, collection: str, path: str | None = None) -> Source: ...

    @abstractmethod
    def upstream(self, **fields: Any) -> UpstreamConfig: ...

    @abstractmethod
    def dead(self, collection: str, path: str | None = None) -> Origin:
        """Return an origin whose server, or whose root directory, is not there."""

    @property
    def secret(self) -> Secret | None:
        return None

    def open(self, collection: str, path: str | None = None, **fields: Any) -> Origin:
        return open_origin(self.source(collection, path), self.upstream(**fields), self.secret)

    def placed(self, collection: str, files: Files) -> dict[str, Placed]:
        """Return each file's origin, revision and entry, as listed now."""
        if self.one_file:
            origins = {path: self.open(collection, path) for path in files}
            return {path: (origin, None, next(iter(origin.list(None)))) for path, origin in origins.items()}
        origin = self.open(collection)
        revision = origin.resolve(None)
        return {entry.path: (origin, revision, entry) for entry in origin.list(revision)}


class HubSite(Site):
    name = "hub"
    immutable = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = HubServer(directory, page_size=3)
        self.endpoint: str | None = None

    def put(self, collection: str, files: Files) -> None:
        self.server.commit(f"org/{collection}", files)

    def source(self, collection: str, path: str | None = None) -> Source:
        return parse_source(f"hf://org/{collection}")

    def upstream(self, **fields: Any) -> UpstreamConfig:
        return UpstreamConfig(**{"hf_endpoint": self.endpoint or self.server.url, **fields})

    def dead(self, collection: str, path: str | None = None) -> Origin:
        return self.open(collection, hf_endpoint=f"http://127.0.0.1:{free_port()}")


class DirectorySite(Site):
    name = "file"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._puts = 0

    def put(self, collection: str, files: Files) -> None:
        place = self.directory / collection
        shutil.rmtree(place, ignore_errors=True)
        self._puts += 1
        for path, content in files.items():
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            # Servers tell versions apart by whole seconds.
            os.utime(target, (self._puts * 10, self._puts * 10))

    def source(self, collection: str, path: str | None = None) -> Source:
        return parse_source(f"file://{self.directory / collection}")

    def upstream(self, **fields: Any) -> UpstreamConfig:
        return UpstreamConfig(**fields)

    def dead(self, collection: str, path: str | None = None) -> Origin:
        return open_origin(parse_source(f"file://{self.directory}-gone/{collection}"), self.upstream())


class FsspecSite(DirectorySite):
    """The way of every scheme that has no origin of its own, on fsspec's simplest filesystem."""

    name = "fsspec"

    def open(self, collection: str, path: str | None = None, **fields: Any) -> Origin:
        return GenericOrigin(self.source(collection).key, {}, 4, 10.0)

    def dead(self, collection: str, path: str | None = None) -> Origin:
        return GenericOrigin(f"file://{self.directory}-gone/{collection}", {}, 4, 10.0)


class NginxSite(DirectorySite):
    name = "nginx"
    one_file = True

    def __init__(self, directory: Path, *, ranged: bool) -> None:
        super().__init__(directory / "root")
        self.ranged = ranged
        self.port = self.reached = free_port()
        self.config = directory / "nginx.conf"
        self.directory.mkdir(parents=True)
        directory.chmod(0o755)
        self.config.write_text(
            f"daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr crit; user root;\n"
            "events { worker_connections 256; }\n"
            f"http {{ access_log off; sendfile on; default_type application/octet-stream;\n"
            f"  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n"
            f"  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;\n"
            f"  scgi_temp_path {directory}/scgi;\n"
            f"  server {{ listen 127.0.0.1:{self.port}; root {self.directory};\n"
            f"    {'' if ranged else 'max_ranges 0;'} }} }}\n"
        )

    @property
    def argv(self) -> list[str]:
        return ["nginx", "-c", str(self.config), "-e", "stderr"]

    def source(self, collection: str, path: str | None = None, port: int = 0) -> Source:
        return parse_source(
            f"http://127.0.0.1:{port or self.reached}/{collection}/{quote(path or 'missing')}"
        )

    def dead(self, collection: str, path: str | None = None) -> Origin:
        return open_origin(self.source(collection, path, free_port()), self.upstream())


class S3Site(Site):
    name = "s3"

    def __init__(self) -> None:
        self.port = self.reached = free_port()
        # Pages of ten keys, so that a listing has several.
        settings = ["env", "MOTO_S3_DEFAULT_MAX_KEYS=10"]
        self.argv = [*settings, sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="AKIDEXAMPLE",
            aws_secret_access_key="hidden-key",
            region_name="us-east-1",
        )

    def put(self, collection: str, files: Files) -> None:
        client = self.client()
        client.create_bucket(Bucket="models")
        found = client.list_objects_v2(Bucket="models", Prefix=f"{collection}/")
        for each in found.get("Contents", []):
            client.delete_object(Bucket="models", Key=each["Key"])
        for path, content in files.items():
            client.put_object(Bucket="models", Key=f"{collection}/{path}", Body=content)

    def source(self, collection: str, path: str | None = None) -> Source:
        return parse_source(f"s3://models/{collection}")

    def upstream(self, **fields: Any) -> UpstreamConfig:
        aws = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.reached}",
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "hidden-key",
        }
        return UpstreamConfig(**{"aws": aws, **fields})

    def dead(self, collection: str, path: str | None = None) -> Origin:
        return self.open(collection, aws={"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"})


class R2Site(S3Site):
    """The same server by R2's rule: one endpoint for every bucket of an account."""

    name = "r2"
    setting = "R2_ENDPOINT_URL"

    def source(self, collection: str, path: str | None = None) -> Source:
        return parse_source(f"r2://0123account.models/{collection}")

    def upstream(self, **fields: Any) -> UpstreamConfig:
        found = super().upstream()
        aws = {**found.aws, self.setting: found.aws["AWS_ENDPOINT_URL"]}
        # Where AWS's own buckets are is nothing to it.
        aws["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{free_port()}"
        return UpstreamConfig(**{"aws": aws, **fields})

    def dead(self, collection: str, path: str | None = None) -> Origin:
        return self.open(collection, aws={self.setting: f"http://127.0.0.1:{free_port()}"})


class CwSite(R2Site):
    """The same server by CoreWeave's rule, but for the bucket in the host's name: it has an address."""

    name = "cw"
    setting = "CW_ENDPOINT_URL"

    def source(self, collection: str, path: str | None = None) -> Source:
        return parse_source(f"cw://models/{collection}")


class SftpSite(DirectorySite):
    name = "sftp"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "root")
        self.directory.mkdir(parents=True)
        self.port = self.reached = free_port()
        self.key = directory / "key"
        for place in (self.key, directory / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place], check=True)
        self.config = directory / "sshd_config"
        self.config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {directory}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {self.key}.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nMaxStartups 64\n"
        )
        # Where Debian's sshd goes before anybody has logged in.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)

    @property
    def argv(self) -> list[str]:
        return ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.config)]

    @property
    def secret(self) -> Secret:
        return Secret(self.key.read_text())

    def source(self, collection: str, path: str | None = None, port: int = 0) -> Source:
        place = self.directory / collection
        return parse_source(f"sftp://{getpass.getuser()}@127.0.0.1:{port or self.reached}{place}")

    def dead(self, collection: str, path: str | None = None) -> Origin:
        return open_origin(self.source(collection, path, free_port()), self.upstream(), self.secret)
