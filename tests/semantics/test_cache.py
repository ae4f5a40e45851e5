"""docs/semantics.md, "The cache"."""

import contextlib
import os
import signal
import time
from pathlib import Path

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, CHUNK, TINY
from tests.commands.node import Node, until
from tests.semantics.talker import Talker


def freed(node: Node) -> bool:
    return not node.run("cache", "evict").out.startswith("0 B")


def test_nothing_mounted_is_evicted_nothing_unmounted_is_pinned_for_ever(node: Node, hub: HubServer) -> None:
    node.run("mount", "hf://acme/tiny", node.m)
    assert not freed(node)
    # The same mount, only in a namespace of somebody else's.
    holder = node.start_program("unshare", "-m", "sh", "-c", "echo there; exec sleep 600")
    until(lambda: "there" in holder.out, "the other namespace")
    node.run("unmount", node.m)
    assert not freed(node)
    holder.process.kill()
    holder.process.wait(60)
    until(lambda: freed(node), "what nobody mounts any more to go")
    # A date that has passed pins nothing.
    node.run("pin", "hf://acme/tiny", "--until", "1s")
    until(lambda: freed(node), "the pin to expire")
    node.run("pin", "hf://acme/tiny", "--until", "7d")
    assert not freed(node)
    node.run("pin", "hf://acme/tiny", "--off")
    assert freed(node)
    # A held lock ends with its holder, however that ends.
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.configure(upstream={"stall": "1m"})
    filling = node.start("prefetch", "hf://acme/tiny")
    until(lambda: node.run("cache", "ls", "--json").json, "the snapshot to be known")
    node.run("cache", "evict")
    assert node.run("cache", "ls", "--json").json
    filling.signal(signal.SIGKILL)
    filling.wait(-signal.SIGKILL)
    node.run("cache", "evict")
    assert not node.run("cache", "ls", "--json").json
    node.clean()


def test_capacity_and_reserve_hold_at_every_instant(node: Node, hub: HubServer) -> None:
    capacity = 8 * CHUNK
    node.configure(cache={"capacity": capacity})
    for name in "abc":
        hub.commit(f"acme/{name}", {"w.bin": name.encode() * 3 * CHUNK})
    hub.commit("acme/other", {"w.bin": b"o" * 5 * CHUNK, "v.bin": b"v" * CHUNK})
    node.run("mount", "hf://acme/a", node.m)
    most = 0
    calls = [node.start("prefetch", f"hf://acme/{name}") for name in "bcbc"]
    while any(call.process.poll() is None for call in calls):
        most = max(most, taken(node))
        time.sleep(0.001)  # a sample, not a wait
    for call in calls:
        assert call.wait(None).code in (0, 4)  # both at once don't fit, and what is being filled is pinned
    assert 3 * CHUNK < most <= capacity
    hub.reset()
    said = node.refused(
        4, "prefetch", "hf://acme/other", says=["needs 48 MiB", "64 MiB", "acme/a", "mounted"]
    )
    assert str(node.cache) in said
    assert hub.bytes_sent == 0
    sources = {item["source"] for item in node.run("cache", "ls", "--json").json}
    assert "hf://acme/a" in sources
    assert len(sources) == 2  # nothing was evicted for what could not fit
    node.run("unmount", node.m)
    # The reserve is a floor of free disk, whatever the capacity.
    disk = os.statvfs(node.cache)
    node.configure(cache={"reserve": 2 * disk.f_bavail * disk.f_frsize})
    node.refused(4, "prefetch", "hf://acme/big", says=["reserved"])
    assert hub.bytes_sent == 0
    node.clean()


def taken(node: Node) -> int:
    """Return how much of the disk the blobs take."""
    found = 0
    for path in (node.cache / "blobs").glob("*/*"):
        with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
            found += path.stat().st_blocks * 512
    return found


def test_a_window_always_goes_on(node: Node, hub: HubServer) -> None:
    capacity, size = 8 * CHUNK, 10 * CHUNK
    node.configure(cache={"capacity": capacity})
    content = bytes(BIG["model.safetensors"][:CHUNK]) * 10
    hub.commit("acme/wide", {"w.bin": content})
    hub.commit("acme/rest", {"w.bin": b"r" * (capacity - CHUNK)})
    node.run("mount", "--lazy", "--no-fill", "hf://acme/wide", node.m)
    node.run("mount", "hf://acme/rest", node.place / "rest")  # takes all but a chunk
    # Without room for one chunk there is no window.
    late = node.place / "late"
    node.refused(4, "mount", "--lazy", "--no-fill", "hf://acme/wide", late, says=["needs 8 MiB"])
    with Talker(node) as reader:
        reader.open(node.m / "w.bin")
        for start in range(0, size, CHUNK):
            assert reader.ask(f"os.pread(fd, 100, {start})") == content[start : start + 100].hex()
        assert taken(node) <= capacity
    node.run("unmount", node.place)
    node.clean()


def test_a_killed_fill_goes_on(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", after=2, times=None, stall=True)
    node.configure(upstream={"fetches": 1, "stall": "1m"})
    filling = node.start("prefetch", "hf://acme/big")
    until(
        lambda: node.run("cache", "du", "--json").json["present_bytes"] >= 2 * CHUNK, "the first two chunks"
    )
    filling.signal(signal.SIGKILL)
    filling.wait(-signal.SIGKILL)
    # One of the chunks that were only written is another one by now: it is rehashed before it counts.
    (blob,) = (path for path in (node.cache / "blobs").glob("*/*") if path.stat().st_size > CHUNK)
    flip(blob, CHUNK + 17)
    hub.faults.clear()
    hub.reset()
    node.run("mount", "hf://acme/big", node.m)
    node.holds(BIG)
    assert hub.bytes_sent <= BIG_BYTES - CHUNK  # the first chunk was kept
    node.run("unmount", node.m)
    node.clean()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_cached_snapshots_need_no_upstream(node: Node, hub: HubServer) -> None:
    node.run("prefetch", "hf://acme/tiny")
    spec = node.spec({"source": "hf://acme/tiny", "mount_location": str(node.m)})
    node.run("lock", spec)
    revision = node.run("cache", "ls", "--json").json[0]["revision"]
    hub.stop()
    try:
        for words in (["hf://acme/tiny@" + revision, node.m], [spec, "--locked"]):
            node.run("mount", *words)
            node.holds(TINY)
            node.run("unmount", node.m)
        done = node.run("mount", "hf://acme/tiny", node.m)
        assert "warning" in done.err
        assert revision[:12] in done.err
        node.holds(TINY)
        node.run("unmount", node.m)
        node.refused(5, "mount", "hf://acme/big", node.m)
    finally:
        hub.start()
    node.clean()
