"""Where the cluster benchmark works: hosts, a Hub, a mirror that has the snapshot, nodes with a cache each."""

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cluster.network import Host, Network, open_network
from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.workplace import BDNFS, remove_tree, serving

PORT = 7891
REPOSITORY = "local/scaled"
FILES = 4
_START_S, _FILL_S, _SAID_BYTES_MAX = 60.0, 900.0, 2000
_WINDOW_S, _LOOK_S = 5.0, 0.5
_MEMORY = Path("/dev/shm")
_PIECE_BYTES = 1 << 22


@dataclass
class Node:
    """One node of the benchmark's cluster."""

    host: Host
    home: Path
    serving: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        return f"{self.host.address}:{PORT}"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def config(self) -> Path:
        return self.home / "config.yaml"


@dataclass
class ClusterPlace:
    """source: the snapshot, pinned; hub, mirror: URLs of the servers; environment: of every process"""

    home: Path
    network: Network
    source: str
    size_bytes: int
    chunk_bytes: int
    hub: str
    mirror: str
    environment: dict[str, str]
    nodes: list[Node] = field(default_factory=list)

    def stats(self, host: str) -> dict[str, float]:
        """Return what the server on a host counts."""
        url = {"hub": self.hub, "mirror": self.mirror}[host]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ask() -> dict[str, float]:
            with opener.open(f"{url}/_stats", timeout=20) as answer:
                found: dict[str, float] = json.load(answer)
                return found

        return self.network.hosts[host].inside(ask)

    def popen(self, node: Node, words: Sequence[str], **how: Any) -> "subprocess.Popen[bytes]":
        environment = self.environment | {
            "BDNFS_CACHE_DIR": str(node.cache),
            "BDNFS_CONFIG": str(node.config),
            "HOME": str(node.home),
        }
        return subprocess.Popen(
            node.host.command(words), cwd=ROOT, env=environment, start_new_session=True, **how
        )

    def run(self, node: Node, *words: str) -> None:
        """Run `bdnfs` on a node to its end; raise BenchmarkError where it fails."""
        with tempfile.TemporaryFile() as said:
            process = self.popen(node, [*BDNFS, *words], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            try:
                code = process.wait(_FILL_S)
            except BaseException:
                process.kill()
                process.wait()
                raise
            if code:
                raise BenchmarkError(f"`bdnfs {' '.join(words)}` ended with exit code {code}; {_tail(said)}")


def _tail(said: Any) -> str:
    said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID_BYTES_MAX))
    return f"it said:\n{said.read().decode(errors='replace').strip()}"


@contextmanager
def open_cluster_place(
    directory: Path, *, nodes: int, size_bytes: int, chunk_bytes: int, rate_bits: int, mtu: int
) -> Iterator[ClusterPlace]:
    """Write a snapshot of random bytes, mirror it, and cap every link; yield the place with nodes that don't run yet.

    Nothing of it stays. Raises BenchmarkError where namespaces can't be made, or there is no room.
    """
    home = Path(
        tempfile.mkdtemp(prefix="bdnfs-cluster.", dir=_roomy(directory, (nodes + 3) * 2 * size_bytes))
    )
    with ExitStack() as after:
        after.callback(remove_tree, home, ignore_errors=True)
        if home.parent == _MEMORY:
            _touch(home / "touched", nodes * 2 * size_bytes)
        try:
            network = after.enter_context(open_network(["hub", "mirror"], mtu=mtu))
        except OSError as error:
            raise BenchmarkError(f"making a network of namespaces: {error}") from None
        environment = _environment(chunk_bytes)
        _write_model(home / "hub" / REPOSITORY, size_bytes)
        (home / "buckets" / "mirror").mkdir(parents=True)
        hosts = network.hosts
        served_by = (("hub", "hub"), ("mirror", "buckets"))
        hub, mirror = (
            after.enter_context(
                serving(
                    name,
                    [str(home / name), "--host", hosts[host].address],
                    environment,
                    hosts[host].command([]),
                )
            )
            for host, name in served_by
        )
        environment |= {"HF_ENDPOINT": hub, "AWS_ENDPOINT_URL": mirror}
        place = ClusterPlace(home, network, "", size_bytes, chunk_bytes, hub, mirror, environment)
        _ingest(place)
        for host in hosts.values():
            host.cap(rate_bits)
        for number in range(nodes):
            host = network.add(f"node{number + 1}", rate_bits)
            place.nodes.append(_node(place, host))
        yield place


def _ingest(place: ClusterPlace) -> None:
    node = _node(place, place.network.hosts["hub"], "ingesting")
    configure(place, [node], [node])
    spec = place.home / "spec.yaml"
    spec.write_text(
        json.dumps({"weights": [{"source": f"hf://{REPOSITORY}", "mount_location": "/models/scaled"}]})
    )
    place.run(node, "mirror", str(spec))
    place.run(node, "lock", str(spec))
    locked = (place.home / "spec.lock").read_text()
    revision = next(word.strip("\"',") for word in locked.split() if len(word.strip("\"',")) == 40)
    place.source = f"hf://{REPOSITORY}@{revision}"
    remove_tree(node.home, ignore_errors=True)


def _node(place: ClusterPlace, host: Host, name: str = "") -> Node:
    home = place.home / (name or host.name)
    home.mkdir(exist_ok=True)
    return Node(host, home)


def configure(place: ClusterPlace, nodes: Sequence[Node], members: Sequence[Node]) -> None:
    """Write each node's config; members: of the cluster, none: no cluster."""
    token = place.home / "token"
    if not token.exists():
        token.touch(0o600)
        token.write_text(secrets.token_hex(16))
    for node in nodes:
        config: dict[str, Any] = {"cache": {"reserve": 0}, "mirror": "s3://mirror/of"}
        if members:
            config["cluster"] = {
                "members": [each.address for each in members],
                "listen": node.address,
                "token_file": str(token),
                "share": 2 * place.size_bytes,
            }
        node.config.write_text(json.dumps(config))  # JSON is YAML


@contextmanager
def served(place: ClusterPlace, nodes: Sequence[Node], *words: str) -> Iterator[None]:
    """Run `bdnfs node` on each, until the block ends."""
    try:
        for node in nodes:
            with (node.home / "node.log").open("wb") as log:
                node.serving = place.popen(
                    node, [*BDNFS, "node", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        deadline = time.monotonic() + _START_S
        for node in nodes:
            while "listening at" not in (said := (node.home / "node.log").read_text()):
                if time.monotonic() > deadline or (node.serving and node.serving.poll() is not None):
                    raise BenchmarkError(
                        f"`bdnfs node` does not listen on {node.host.name}; it said:\n{said}"
                    )
                time.sleep(0.05)
        yield
    finally:
        for node in nodes:
            if node.serving is not None:
                node.serving.send_signal(signal.SIGTERM)
        for node in nodes:
            if node.serving is not None:
                try:
                    node.serving.wait(_START_S)
                except subprocess.TimeoutExpired:
                    node.serving.kill()
                    node.serving.wait()
                node.serving = None


@dataclass(frozen=True)
class Filled:
    """seconds: of each node, from the common start

    cpu_max, cpu_mean: of all CPUs, the part that was busy in the busiest 5 s, and in all
    sent_bytes: by each node's link; hub_bytes, mirror_bytes: what the servers sent
    """

    seconds: list[float]
    cpu_max: float
    cpu_mean: float
    sent_bytes: list[int]
    received_bytes: list[int]
    hub_bytes: int
    mirror_bytes: int
    said: list[str]


def filled(
    place: ClusterPlace, nodes: Sequence[Node], words: Sequence[str] | Sequence[Sequence[str]]
) -> Filled:
    """Run modules on all nodes at once, each of which says `ready` first; BenchmarkError where one fails.

    words: module and arguments, the same for all or for each
    """
    started: list[subprocess.Popen[bytes]] = []
    said = [(node.home / "fill.log").open("w+b") for node in nodes]
    try:
        for number, (node, log) in enumerate(zip(nodes, said, strict=True)):
            mine = words if isinstance(words[0], str) else words[number]
            command = [sys.executable, "-m", *map(str, mine)]
            started.append(
                place.popen(node, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
            )
        for process in started:
            _ready(process, said)
        time.sleep(1.0)  # what starting them cost is not to be in what is measured
        hub, mirror = place.stats("hub")["bytes_sent"], place.stats("mirror")["bytes_sent"]
        before = [node.host.traffic() for node in nodes]
        busy = _Busy()
        began_s = time.monotonic()
        for process in started:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        seconds = all_ended(started, said, began_s)
        cpu_max, cpu_mean = busy.end()
        after = [node.host.traffic() for node in nodes]
        return Filled(
            seconds,
            cpu_max,
            cpu_mean,
            [now[0] - then[0] for now, then in zip(after, before, strict=True)],
            [now[1] - then[1] for now, then in zip(after, before, strict=True)],
            int(place.stats("hub")["bytes_sent"] - hub),
            int(place.stats("mirror")["bytes_sent"] - mirror),
            [_tail(log) for log in said],
        )
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        for log in said:
            log.close()


def _ready(process: "subprocess.Popen[bytes]", said: Sequence[Any]) -> None:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _START_S)
    if not ready or process.stdout.readline() != b"ready\n":
        raise BenchmarkError("a fill did not get ready; " + "\n".join(_tail(log) for log in said))


def all_ended(
    started: Sequence["subprocess.Popen[bytes]"], said: Sequence[Any], began_s: float
) -> list[float]:
    """Return after how many seconds each said `whole`, or ended."""
    ended: dict[int, float] = {}
    # What a process says may come in pieces: with PYTHONUNBUFFERED a line and its end are two writes.
    told: dict[int, bytes] = {}
    by_fd = {process.stdout.fileno(): number for number, process in enumerate(started) if process.stdout}
    while len(ended) < len(started):
        ready, _, _ = select.select(list(by_fd), [], [], max(0.0, began_s + _FILL_S - time.monotonic()))
        now_s = time.monotonic()
        if not ready:
            raise BenchmarkError(f"fills are not whole after {now_s - began_s:.0f} s")
        for fd in ready:
            data = os.read(fd, 65536)
            number = by_fd[fd]
            told[fd] = told.get(fd, b"") + data
            if b"whole\n" in told[fd]:
                ended[number] = now_s - began_s
                del by_fd[fd]
            elif not data:
                code = started[number].wait(_START_S)
                if code:
                    raise BenchmarkError(f"a fill ended with exit code {code}; {_tail(said[number])}")
                ended[number] = now_s - began_s
                del by_fd[fd]
    return [ended[number] for number in range(len(started))]


class _Busy:
    """What part of all CPUs is busy, looked at twice a second until `end`."""

    def __init__(self) -> None:
        self._seen = [self._now()]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> tuple[float, float]:
        """Return the part in the busiest _WINDOW_S, and in all."""
        self._ended.set()
        self._thread.join()
        self._seen.append(self._now())
        looks = round(_WINDOW_S / _LOOK_S)
        windows = [_part(then, now) for then, now in zip(self._seen, self._seen[looks:], strict=False)]
        mean = _part(self._seen[0], self._seen[-1])
        return max([mean, *windows]), mean

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self._seen.append(self._now())

    def _now(self) -> tuple[float, float]:
        """Return the machine's CPU time so far: busy, all."""
        fields = [float(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(fields) - fields[3] - fields[4], sum(fields)


def _part(then: tuple[float, float], now: tuple[float, float]) -> float:
    return (now[0] - then[0]) / max(now[1] - then[1], 1.0)


def _touch(path: Path, size_bytes: int) -> None:
    """Use memory once: a virtual machine is given a page as it is first written, at four times what writing costs."""
    piece = bytes(_PIECE_BYTES)
    with path.open("wb") as file:
        for _ in range(size_bytes // _PIECE_BYTES):
            file.write(piece)
    path.unlink()


def _write_model(directory: Path, size_bytes: int) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}\n")
    part = size_bytes // FILES
    for number in range(FILES):
        with (directory / f"model-{number + 1:05}-of-{FILES:05}.safetensors").open("wb") as file:
            left = part
            while left:
                left -= file.write(os.urandom(min(left, _PIECE_BYTES)))


def _environment(chunk_bytes: int) -> dict[str, str]:
    dropped = ("HF_", "BDNFS_", "AWS_", "PYTHONDONTWRITEBYTECODE", "http_proxy", "https_proxy", "HTTP_PROXY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {
        "PYTHONPATH": f"{Path(__file__).parent / 'scaled'}:{ROOT}",
        "BDNFS_BENCHMARK_CHUNK_BYTES": str(chunk_bytes),
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "hidden-key",
        "AWS_REGION": "us-east-1",
    }


def _roomy(directory: Path, need_bytes: int) -> Path:
    """Return memory if it has room, for one disk would be shared by nodes that have one each; else directory."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if _MEMORY.is_dir() and min(available, shutil.disk_usage(_MEMORY).free) > need_bytes + 10**9:
        return _MEMORY
    directory.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(directory).free < need_bytes:
        raise BenchmarkError(f"{directory} has no {need_bytes / 1e9:.1f} GB free; name another --directory")
    return directory
