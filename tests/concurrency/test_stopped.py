"""A process that is stopped while it holds a lock: the others end at their deadline and say who it is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bdnfs.cache.layout import Layout
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.session.records import location_file
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, CHUNK
from tests.commands.node import ROOT, WAIT_S, Node, until

SEAL_BYTE = 1 << 62
HOLD = """
import os, signal, sys
from pathlib import Path
from bdnfs.cache.locks import open_lock_file, try_lock
fd = open_lock_file(Path(sys.argv[1]))
assert try_lock(fd, exclusive=True, start=int(sys.argv[2]), length=int(sys.argv[3]))
print("held", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextmanager
def stopped_with(path: Path, start: int = 0, length: int = 0) -> Iterator[int]:
    """Have a stopped process hold the lock; yield its pid. In the end it goes on, and lets go."""
    words = [sys.executable, "-c", HOLD, str(path), str(start), str(length)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            until(lambda: " (python" in _stat(holder.pid) and " T " in _stat(holder.pid), "it to stop")
            yield holder.pid
        finally:
            holder.send_signal(signal.SIGCONT)
            holder.wait(WAIT_S)
    assert holder.returncode == 0


def _stat(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text()


def refused(node: Node, code: int, *words: object, pid: int) -> str:
    """Run a command that comes to its deadline; check that it names the process, and return what it says."""
    impatient = [sys.executable, "-m", "tests.concurrency.impatient", *words]
    done = node.start_program(*impatient, how={"cwd": ROOT}).wait(code)
    assert f"pid {pid}, stopped" in done.error, done.error
    return done.error


def half_filled(node: Node, hub: HubServer) -> Path:
    """Leave acme/big with its first chunk here; return the blob of its model."""
    hub.faults.add(match="/cdn/", after=1, times=None, stall=True)
    node.configure(upstream={"fetches": 1, "stall": "1m"})
    filling = node.start("prefetch", "hf://acme/big")
    until(lambda: node.run("cache", "du", "--json").json["present_bytes"] >= CHUNK, "the first chunk")
    filling.signal(signal.SIGKILL)
    filling.wait(-signal.SIGKILL)
    hub.faults.clear()
    hub.reset()
    node.configure()
    size = len(BIG["model.safetensors"])
    return next(path for path in (node.cache / "blobs").glob("*/*") if path.stat().st_size == size)


def test_the_index(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    with stopped_with(node.cache / "index.lock") as pid:
        for words in (["cache", "ls"], ["mount", "hf://acme/tiny", node.m]):
            assert "index.lock" in refused(node, 9, *words, pid=pid)
    node.run("mount", "hf://acme/tiny", node.m)
    node.run("unmount", node.m)
    node.clean()


def test_a_pin(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    (snapshot,) = os.listdir(node.cache / "snapshots")
    with stopped_with(node.cache / "pins" / snapshot) as pid:
        said = refused(node, 9, "mount", "hf://acme/tiny", node.m, pid=pid)
        assert f"pins/{snapshot}" in said
        # Who holds it exclusively is an evictor: nobody else may think it pinned for good.
        assert node.run("cache", "evict").out == "0 B freed\n"
    node.run("mount", "hf://acme/tiny", node.m)
    node.run("unmount", node.m)
    node.clean()


@pytest.mark.parametrize(
    ("start", "length", "what"),
    [(CHUNK_BYTES, CHUNK_BYTES, "a chunk"), (SEAL_BYTE, 1, "the end")],
    ids=["chunk", "seal"],
)
def test_a_part_of_a_blob(node: Node, hub: HubServer, start: int, length: int, what: str) -> None:
    blob = half_filled(node, hub)
    with stopped_with(blob, start, length) as pid:
        said = refused(node, 9, "prefetch", "hf://acme/big", pid=pid)
        assert f"at {what} of it" in said
    node.run("run", "hf://acme/big", node.m, "--", "true")
    assert hub.bytes_sent <= BIG_BYTES - CHUNK  # what the others could fetch meanwhile was kept
    node.clean()


def test_a_location(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    with stopped_with(location_file(Layout(node.cache), str(node.m), "lock")) as pid:
        assert str(node.m) in refused(node, 7, "mount", "--timeout", "1s", "hf://acme/tiny", node.m, pid=pid)
        node.run("run", "hf://acme/tiny", node.place / "elsewhere", "--", "true")
        node.run("status")
    node.run("mount", "hf://acme/tiny", node.m)
    node.run("unmount", node.m)
    node.clean()


def test_the_registry_of_directories(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    with stopped_with(node.cache / "mounts" / "made.lock") as pid:
        assert "made.lock" in refused(node, 7, "mount", "hf://acme/tiny", node.m, pid=pid)
    node.run("mount", "hf://acme/tiny", node.m)
    node.run("unmount", node.m)
    node.clean()


def test_a_writer(node: Node, hub: HubServer) -> None:
    """It lives, so what it filled is read and finished by others; its own chunk is what they end at."""
    hub.faults.add(match="/cdn/", after=1, times=1, stall=True)
    node.configure(upstream={"fetches": 1, "stall": "1m"})
    filling = node.start("prefetch", "hf://acme/big")
    until(lambda: node.run("cache", "du", "--json").json["present_bytes"] >= CHUNK, "the first chunk")
    filling.signal(signal.SIGSTOP)
    (writer,) = os.listdir(node.cache / "writers")
    try:
        refused(node, 9, "prefetch", "hf://acme/big", pid=filling.process.pid)
        assert writer in os.listdir(node.cache / "writers")
        assert node.run("cache", "evict").out == "0 B freed\n"
    finally:
        filling.signal(signal.SIGCONT)
    hub.faults.clear()
    node.configure()
    filling.signal(signal.SIGKILL)  # its upstream stalls for a minute
    filling.wait(-signal.SIGKILL)
    node.run("run", "hf://acme/big", node.m, "--", "true")
    node.clean()
