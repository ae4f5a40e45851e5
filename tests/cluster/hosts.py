"""A cluster of real nodes: each in a network namespace of its own, with a Hub, a mirror and a Redis on others.

Hub and mirror run in this process and listen there: what they have sent is counted where the tests can see it.
Chunks are small (`CHUNK_BYTES`), so that a few megabytes are as many chunks as a model's.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cluster.network import Host, Network, open_network
from benchmarks.servers.buckets import BucketServer
from benchmarks.servers.hub import HubServer
from benchmarks.servers.serving import Exchange
from tests.commands.forker import Forked, Forker
from tests.commands.node import ROOT, Command, Node, until

CHUNK_BYTES = 64 << 10
PORT, REDIS_PORT = 7891, 6379
SCALED = str(ROOT / "benchmarks" / "cluster" / "scaled")
PYTHONPATH = f"{SCALED}:{ROOT}"
WAIT_S = 60.0
_CHUNK_TYPE = "application/vnd.baseten.bdn.chunk.v1"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Files = Mapping[str, bytes]


class Mirror(BucketServer):
    """The mirror's server.

    chunk_bytes: what it has sent of chunks; records of versions are not among them
    asked:       each request for a chunk: who asked, which object
    """

    def __init__(self, root: Path, host: str) -> None:
        self.chunk_bytes = 0
        self.asked: list[tuple[str, str]] = []
        super().__init__(root, host)

    def _get(self, exchange: Exchange, path: Path) -> None:
        if exchange.command == "GET" and _CHUNK_TYPE in self._headers.get(path, {}).values():
            with self._lock, contextlib.suppress(FileNotFoundError):
                self.chunk_bytes += path.stat().st_size
                self.asked.append((exchange.client_address[0], path.name))
        super()._get(exchange, path)


class Redis:
    """A Redis on a host of the cluster, without persistence: what it knew is gone when it is killed."""

    def __init__(self, host: Host, directory: Path) -> None:
        self._host, self._directory = host, directory
        self._child: subprocess.Popen[bytes] | None = None
        self.url = f"redis://{host.address}:{REDIS_PORT}/0"
        self.start()

    def start(self) -> None:
        words = f"--bind {self._host.address} --port {REDIS_PORT} --dir {self._directory} --appendonly no"
        self._child = subprocess.Popen(
            self._host.command(["redis-server", *words.split(), "--save", "", "--protected-mode", "no"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: answers(self._host, REDIS_PORT), "Redis to listen")

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait(WAIT_S)
        self._child = None


def answers(host: Host, port: int) -> bool:
    """Say whether somebody takes connections on a port of host."""

    def connect() -> bool:
        with socket.socket() as probe:
            probe.settimeout(5)
            return probe.connect_ex((host.address, port)) == 0

    return host.inside(connect)


class _ForkedThere:
    """The forker, for one host."""

    def __init__(self, forker: Forker, host: Host) -> None:
        self._forker, self._network = forker, f"/proc/{host.pid}/ns/net"

    def start(self, **request: Any) -> Forked:
        return self._forker.start(**request, network=self._network)


class ClusterNode(Node):
    """One node: `run` and `start` call `bdnfs` on its host; `serve` starts `bdnfs node`."""

    def __init__(self, cluster: "Cluster", host: Host) -> None:
        place = Path(tempfile.mkdtemp(prefix=f"{host.name}-", dir=cluster.place))
        self.host, self.cluster, self.address = host, cluster, f"{host.address}:{PORT}"
        self.served: Command | None = None
        self.is_changed = False
        super().__init__(place, cluster.hub.url, _ForkedThere(cluster.forker, host))  # type: ignore[arg-type]
        self.environment |= cluster.environment

    def configure(self, *, cache: dict[str, Any] | None = None, **sections: Any) -> None:
        """Write the config; cluster: what differs from the others', None: no cluster."""
        # In flight, as a part of all chunks, more than any model's, but not as many as a fourth of them.
        sections.setdefault("upstream", {}).setdefault("fetches", 6)
        if "cluster" in sections and sections["cluster"] is None:
            del sections["cluster"]
            return super().configure(cache=cache, mirror="s3://mirror/of", **sections)
        token = self.home / "token"
        if not token.exists():
            token.touch(0o600)
            token.write_text(self.cluster.token)
        cluster = {
            "name": "tests",
            "redis": self.cluster.redis.url,
            "listen": self.address,
            "token_file": str(token),
            "share": "64MiB",
            **sections.pop("cluster", {}),
        }
        cluster = {key: value for key, value in cluster.items() if value is not None}
        return super().configure(cache=cache, mirror="s3://mirror/of", cluster=cluster, **sections)

    # ---- the node that serves --------------------------------------------------------------------

    def serve(self, *words: str) -> None:
        """Start `bdnfs node`; return once it answers."""
        self.served = self.start("node", *words)
        until(self.listening, f"{self.host.name} to listen")

    def listening(self) -> bool:
        assert self.served is not None
        code = self.served.process.poll()
        assert code is None, f"bdnfs node ended with {code}: {self.served.err}{self.served.out}"
        return "listening at" in self.served.out

    def change(self, *, token: str | None = None, directory: str | None = None, **sections: Any) -> None:
        """Give it another config for its next start, until `change_back`. directory: of its cache"""
        self.is_changed = True
        if token:
            (self.home / "token").write_text(token)
        if directory:
            self.environment["BDNFS_CACHE_DIR"] = directory
        self.configure(**sections)

    def change_back(self) -> None:
        (self.home / "token").write_text(self.cluster.token)
        self.environment["BDNFS_CACHE_DIR"] = str(self.cache)
        self.configure()
        self.is_changed = False

    @property
    def serves(self) -> bool:
        return self.served is not None and self.served.process.poll() is None

    @property
    def directory(self) -> Path:
        """Where its cache is now."""
        return Path(self.environment["BDNFS_CACHE_DIR"])

    def kill(self) -> None:
        """Kill `bdnfs node` -9, and wait until nothing of it listens any more."""
        assert self.served is not None
        self.served.process.kill()
        self.served.process.wait(WAIT_S)
        until(lambda: not answers(self.host, PORT), f"nothing to listen on {self.host.name}")

    def leave(self) -> None:
        """End `bdnfs node` as an operator does."""
        assert self.served is not None
        self.served.signal(signal.SIGTERM)
        self.served.wait(limit_s=WAIT_S)

    def ask(self, path: str, token: str | None = None, **headers: str) -> tuple[int, bytes]:
        """GET a path of its node from its own host; return the status and the body."""
        return self.cluster.ask(self.host, self.address, path, token, **headers)

    def members(self) -> set[str]:
        """The names that it knows now."""
        status, body = self.ask("/v1/node")
        assert status == 200, body
        return {member["name"] for member in json.loads(body)["members"]}

    # ---- fills -----------------------------------------------------------------------------------

    def fetch(self, *words: str) -> Command:
        """Start a prefetch."""
        return self.start("prefetch", *words, "--progress=plain")

    def tree_holds(self, files: Files) -> None:
        """Check that a tree of the node's cache holds exactly files, byte for byte."""
        trees = [each for each in (self.directory / "trees").iterdir() if each.is_dir()]
        for tree in trees:
            found = {str(path.relative_to(tree)): path for path in tree.rglob("*") if path.is_file()}
            if set(found) == set(files) and all(
                path.read_bytes() == files[name] for name, path in found.items()
            ):
                return
        raise AssertionError(f"{self.host.name}: none of {len(trees)} trees holds what was asked for")

    def share_bytes(self) -> int:
        """What its share has on the disk."""
        return sum(path.stat().st_size for path in (self.directory / "share").rglob("*") if path.is_file())


class Cluster:
    """What tests have of a cluster; open it with `open_cluster`."""

    def __init__(self, place: Path, network: Network, after: ExitStack) -> None:
        self.place, self.network = place, network
        self._after = after
        self.token = secrets.token_hex(16)
        self.nodes: list[ClusterNode] = []
        hosts = {name: network.add(name) for name in ("hub", "mirror", "redis")}
        (place / "hub").mkdir()
        self.hub = HubServer(place / "hub", host=hosts["hub"].address)
        hosts["hub"].inside(self.hub.start)
        after.callback(self.hub.stop)
        (place / "buckets" / "mirror").mkdir(parents=True)
        self.mirror = hosts["mirror"].inside(lambda: Mirror(place / "buckets", hosts["mirror"].address))
        after.enter_context(self.mirror)
        (place / "redis").mkdir()
        self.redis = Redis(hosts["redis"], place / "redis")
        after.callback(self.redis.kill)
        self.environment = {
            "AWS_ENDPOINT_URL": self.mirror.url,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "hidden-key",
            "AWS_REGION": "us-east-1",
            "PYTHONPATH": PYTHONPATH,
            "BDNFS_BENCHMARK_CHUNK_BYTES": str(CHUNK_BYTES),
        }
        self.forker = Forker("tests.cluster.forking", {**os.environ, **self.environment})
        after.callback(self.forker.close)

    def add(self, name: str | None = None) -> ClusterNode:
        """Connect one more node; it serves nothing yet."""
        host = self.network.add(name or f"node{len(self.nodes) + 1}")
        self.nodes.append(ClusterNode(self, host))
        return self.nodes[-1]

    def serve(self, nodes: Sequence[ClusterNode], *words: str) -> None:
        """Start `bdnfs node` on each; return once each listens."""
        for node in nodes:
            node.served = node.start("node", *words)
        for node in nodes:
            until(node.listening, f"{node.host.name} to listen")

    def leave(self, nodes: Sequence[ClusterNode]) -> None:
        """End `bdnfs node` on each."""
        for node in nodes:
            assert node.served is not None
            node.served.signal(signal.SIGTERM)
        for node in nodes:
            assert node.served is not None
            node.served.wait(limit_s=WAIT_S)

    def serve_with(self, nodes: Sequence[ClusterNode], **changes: Any) -> None:
        """Restart each with another config, until `restore`."""
        self.leave([node for node in nodes if node.serves])
        for node in nodes:
            node.change(**changes)
        self.serve(nodes)

    def restore(self, nodes: Sequence[ClusterNode]) -> None:
        """Have each serve as before, whatever was done to it, and wait until all know each other."""
        changed = [node for node in nodes if node.is_changed]
        self.leave([node for node in changed if node.serves])
        for node in changed:
            node.change_back()
        self.serve([node for node in nodes if not node.serves])
        self.settle(nodes)

    def mirrored(self, sources: Iterable[str]) -> None:
        """Bring sources into the mirror, from a host that is no node."""
        ingesting = ClusterNode(self, self.network.hosts["hub"])
        ingesting.configure(cluster=None)
        weights = [{"source": each, "mount_location": f"/m/{n}"} for n, each in enumerate(sources)]
        ingesting.run("mirror", ingesting.spec(*weights))

    def settle(self, nodes: Sequence[ClusterNode]) -> None:
        """Wait until each of these nodes knows exactly them."""
        names = {node.address for node in nodes}
        until(
            lambda: all(node.members() == names for node in nodes), f"{len(nodes)} nodes to know each other"
        )

    def ask(
        self, host: Host, address: str, path: str, token: str | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """GET from host; token: None is the right one, "" none at all."""
        token = self.token if token is None else token
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["Authorization"] = f"Bearer {token}"

        def get() -> tuple[int, bytes]:
            try:
                request = urllib.request.Request(f"http://{address}{path}", headers=sent)
                with _OPENER.open(request, timeout=20) as answer:
                    return int(answer.status), bytes(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()

        return host.inside(get)

    @contextmanager
    def counted(self) -> Iterator["Counted"]:
        """Count what leaves Hub and mirror in the block."""
        counted, asked = Counted(self.hub.bytes_sent, self.mirror.chunk_bytes), len(self.mirror.asked)
        yield counted
        counted.asked = self.mirror.asked[asked:]
        counted.hub_bytes = self.hub.bytes_sent - counted.hub_bytes
        counted.mirror_bytes = self.mirror.chunk_bytes - counted.mirror_bytes

    def end(self) -> None:
        for node in self.nodes:
            node.host.heal()
            node.end()


class Counted:
    """What left the servers. asked: the mirror, for a chunk each: who, which object"""

    def __init__(self, hub_bytes: int, mirror_bytes: int) -> None:
        self.hub_bytes, self.mirror_bytes = hub_bytes, mirror_bytes
        self.asked: list[tuple[str, str]] = []

    def __repr__(self) -> str:
        by = Counter(who for who, _ in self.asked)
        asked: dict[str, list[str]] = {}
        for who, what in self.asked:
            asked.setdefault(what, []).append(who)
        again = [" and ".join(who) for who in asked.values() if len(who) > 1]
        return (
            f"{self.mirror_bytes} bytes of chunks from the mirror, {self.hub_bytes} from the Hub; chunks by who asked: "
            f"{dict(by)}; {len(again)} of {len(asked)} more than once: {'; '.join(again[:20])}"
        )


@contextmanager
def open_cluster(rate_bits: int | None = None) -> Iterator[Cluster]:
    """Yield a cluster without nodes, gone at the end with all that still runs in it. rate_bits: of each link."""
    place = Path(tempfile.mkdtemp(prefix="bdnfs-cluster-", dir="/var/tmp"))
    with ExitStack() as after:
        after.callback(_remove, place)
        network = after.enter_context(open_network(rate_bits=rate_bits))
        cluster = Cluster(place, network, after)
        after.callback(cluster.end)
        yield cluster


def _remove(place: Path) -> None:
    for directory, _, _ in os.walk(place):
        os.chmod(directory, 0o700)
    shutil.rmtree(place)


def all_at_once(commands: Sequence[Command], limit_s: float = WAIT_S) -> None:
    """Wait for each to end well, within one deadline."""
    deadline = time.monotonic() + limit_s
    for command in commands:
        command.wait(limit_s=max(1.0, deadline - time.monotonic()))


__all__ = [
    "CHUNK_BYTES",
    "Cluster",
    "ClusterNode",
    "all_at_once",
    "answers",
    "open_cluster",
]
