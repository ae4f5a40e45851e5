"""One process and one daemon that go on and on: what they have of the machine does not grow."""

import hashlib
import json
import mmap
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bdnfs.core.units import MIB
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, CHUNK
from tests.commands.node import Node, until
from tests.limits.measures import descriptors, rss_bytes, threads

# Freed memory is not always given back at once: arenas of threads, LMDB's pages. What grows with every
# turn passes this within some hundred turns; what does not, never does.
GROWN_BYTES_MAX = 24 * MIB
# Of a daemon: two windows of chunks in flight (16 × 8 MiB) are the most it may hold at any time.
DAEMON_BYTES_MAX = 400 * MIB

MOUNTS = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import bdnfs
from tests.limits.measures import descriptors, rss_bytes, threads

point, turns = sys.argv[2], int(sys.argv[3])
def turn():
    with bdnfs.mount("hf://acme/tiny", point) as mount:
        assert len(os.listdir(mount.path)) == 3
        with open(mount.path + "/config.json", "rb") as file:
            file.read()
for number in range(turns + 5):
    if number == 5:  # imports and pools are made by now
        before = rss_bytes(), descriptors(), threads()
    turn()
after = rss_bytes(), descriptors(), threads()
print(json.dumps([before, after]))
"""


def mounts_in_one_process(node: Node, turns: int) -> None:
    node.run("prefetch", "hf://acme/tiny")
    done = node.python(MOUNTS, Path(__file__).parents[2], node.m, turns).wait(0, 60 + turns)
    before, after = json.loads(done.out)
    assert after[1] == before[1], f"{after[1] - before[1]} descriptors leak in {turns} mounts"
    assert after[2] <= before[2], f"threads: {before[2]} before, {after[2]} after {turns} mounts"
    assert after[0] - before[0] < GROWN_BYTES_MAX, f"{after[0] - before[0]} bytes more after {turns} mounts"
    node.clean()
    left = sorted(path.name for path in (node.cache / "mounts").iterdir())
    assert len(left) <= 3, left
    for name in ("trash", "writers"):
        assert os.listdir(node.cache / name) == [], name
    assert len(os.listdir(node.cache / "pins")) <= 1


def test_many_mounts_in_one_process_leave_nothing(node: Node) -> None:
    mounts_in_one_process(node, 60)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_ten_thousand_mounts_in_one_process_leave_nothing(node: Node) -> None:
    mounts_in_one_process(node, 10_000)


def soak(node: Node, hub: HubServer, seconds: float, seed: int) -> None:
    """Read at random through a window smaller than what is read: every read opens, fetches and evicts."""
    dice = random.Random(seed)
    files = {f"part-{number}": BIG["model.safetensors"][: CHUNK + 5000 * number] for number in range(16)}
    hub.commit("acme/soak", {"config.json": b"{}", **files})
    node.configure(cache={"capacity": "96MiB"})
    node.run("mount", "--lazy", "--no-fill", "hf://acme/soak", node.m)
    (daemon,) = node.daemons()
    reader = subprocess.Popen(
        [sys.executable, "-u", "-c", READER, node.m], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    samples: list[tuple[int, int, int]] = []
    deadline_s, reads, index_bytes = time.monotonic() + seconds, 0, []
    try:
        while time.monotonic() < deadline_s or reads < 150:
            name = dice.choice(sorted(files))
            start = dice.randrange(len(files[name]))
            size = dice.choice((1, 4096, 100_000, MIB))
            reader.stdin.write(json.dumps([name, start, size]) + "\n")
            reader.stdin.flush()
            said = reader.stdout.readline().strip()
            expected = hashlib.sha256(files[name][start : start + size]).hexdigest()
            assert said == expected, f"seed {seed}: read {reads}, {name} [{start}, +{size}): {said}"
            reads += 1
            if reads % 25 == 0:
                samples.append((rss_bytes(daemon), descriptors(daemon), threads(daemon)))
                index_bytes.append((node.cache / "index.lmdb").stat().st_blocks * 512)
    finally:
        reader.stdin.close()
        reader.kill()
        reader.wait(60)
        reader.stdout.close()
    half = len(samples) // 2
    early, late = samples[1:half], samples[half:]
    assert max(rss for rss, _, _ in samples) < DAEMON_BYTES_MAX, samples
    grown = min(rss for rss, _, _ in late) - max(rss for rss, _, _ in early)
    assert grown < GROWN_BYTES_MAX, f"seed {seed}: {grown} bytes more after {reads} reads: {samples}"
    assert min(fds for _, fds, _ in late) <= max(fds for _, fds, _ in early), samples
    assert max(count for _, _, count in samples) <= 100, samples
    assert index_bytes[-1] == index_bytes[0], index_bytes
    node.run("unmount", node.m)
    node.clean()


READER = """
import hashlib, json, os, sys
for line in sys.stdin:
    name, start, size = json.loads(line)
    fd = os.open(f"{sys.argv[1]}/{name}", os.O_RDONLY)
    try:
        print(hashlib.sha256(os.pread(fd, size, start)).hexdigest())
    except OSError as error:
        print(error)
    finally:
        os.close(fd)
"""


def test_a_daemon_that_reads_and_evicts_stays_as_it_is(node: Node, hub: HubServer) -> None:
    soak(node, hub, 8.0, 20261121)


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_a_daemon_that_reads_and_evicts_for_an_hour_stays_as_it_is(node: Node, hub: HubServer) -> None:
    soak(node, hub, 3600.0, random.SystemRandom().randrange(1 << 30))


WAITERS = """
import os, sys, threading
top, count = sys.argv[1], int(sys.argv[2])
def read(number):
    fd = os.open(f"{top}/model.safetensors", os.O_RDONLY)
    try:
        os.pread(fd, 10, (number * 4096) % (2 << 23))
    except OSError:
        pass
    finally:
        os.close(fd)
threads = [threading.Thread(target=read, args=(number,)) for number in range(count)]
for thread in threads:
    thread.start()
print("reading", flush=True)
for thread in threads:
    thread.join()
"""


def test_five_hundred_waiting_readers_take_no_threads(node: Node, hub: HubServer) -> None:
    """They wait in the daemon's event loop; its threads are those that fetch, and after them it has as before."""
    hub.commit("acme/waited", BIG)
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.configure(upstream={"attempts": 100, "stall": "30s"})
    node.run("mount", "--lazy", "--no-fill", "hf://acme/waited", node.m)
    (daemon,) = node.daemons()
    before = threads(daemon), descriptors(daemon)
    readers = node.python(WAITERS, node.m, 500)
    until(lambda: "reading" in readers.out, "the readers to begin")
    pid = readers.process.pid
    until(lambda: sum(waits(pid)) >= 450, "the readers to wait")
    during = threads(daemon), descriptors(daemon)
    assert during[0] <= before[0] + 64, (before, during)
    assert during[1] <= before[1] + 96, (before, during)
    hub.faults.clear()
    hub.stop()  # those that stall, too
    hub.start()
    readers.process.kill()
    readers.process.wait(60)
    node.run("unmount", "--force", node.m)
    node.clean()


def waits(pid: int) -> list[bool]:
    """Say of each thread whether it waits in a read of a FUSE mount."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.append((task / "syscall").read_text().split()[0] == "17")  # pread64 on x86-64
        except (OSError, IndexError):
            continue
    return found


def test_endless_fills_and_evictions_leave_the_cache_as_it_was(node: Node, hub: HubServer) -> None:
    """Neither the index grows, nor anything that lies beside it, when the same work is done again and again."""

    def turn(number: int) -> None:
        hub.commit("acme/turn", {"config.json": b"{}", "model.bin": b"%d" % number * 1000})
        node.run("prefetch", "hf://acme/turn")
        node.run("cache", "evict", "--older-than", "0s")

    def held() -> dict[str, int]:
        found = {path.name: sum(1 for _ in path.rglob("*")) for path in node.cache.iterdir() if path.is_dir()}
        return {**found, "index": (node.cache / "index.lmdb").stat().st_blocks}

    for number in range(3):
        turn(number)
    before = held()
    for number in range(3, 15):
        turn(number)
    after = held()
    before_blobs, after_blobs = before.pop("blobs"), after.pop("blobs")
    assert after == before
    assert after_blobs <= 256 >= before_blobs  # their directories, ab to ff, at most


def test_the_measures_can_tell() -> None:
    before = rss_bytes(), descriptors()
    # Pages of their own: an allocator may have as much at hand, from the tests before.
    held = mmap.mmap(-1, 32 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        held.write(os.urandom(32 * MIB))
        assert rss_bytes() - before[0] > GROWN_BYTES_MAX
        assert descriptors() == before[1] + 1
    finally:
        os.close(fd)
        held.close()
