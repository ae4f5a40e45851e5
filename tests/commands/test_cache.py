"""`bdnfs cache …` and `bdnfs pin`: what is held, what may go, what was damaged; and a disk that is full."""

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, TINY
from tests.commands.node import Node, until

TINY_BYTES = sum(map(len, TINY.values()))


def held(node: Node) -> dict[str, object]:
    return {item["source"]: item["pinned"] for item in node.run("cache", "ls", "--json").json}


def test_ls_and_du(node: Node, hub: HubServer) -> None:
    assert node.run("cache", "ls").out == "the cache is empty\n"
    node.run("prefetch", "hf://acme/tiny")
    commit = hub.repository("acme/tiny").branches["main"]
    (item,) = node.run("cache", "ls", "--json").json
    assert (item["source"], item["revision"], item["whole"], item["bytes"]) == (
        "hf://acme/tiny",
        commit,
        True,
        TINY_BYTES,
    )
    assert f"hf://acme/tiny@{commit[:12]}  3 files  68.4 KiB  whole" in node.run("cache", "ls").out
    assert node.run("cache", "du", "--json").json["present_bytes"] == TINY_BYTES
    assert f"{node.cache}: 68.4 KiB present" in node.run("cache", "du").out


def test_evict_by_age_and_dry_run(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    assert "0 B would be freed" in node.run("cache", "evict", "--older-than", "7d", "--dry-run").out
    assert "68.4 KiB would be freed" in node.run("cache", "evict", "--dry-run").out
    assert list(held(node)) == ["hf://acme/tiny"]
    assert "68.4 KiB freed" in node.run("cache", "evict").out
    assert held(node) == {}
    assert not [name for _, _, names in os.walk(node.cache / "blobs") for name in names]


def test_mounted_and_pinned_ones_stay(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    node.run("mount", "hf://acme/tiny", node.m)
    assert held(node) == {"hf://acme/tiny": "mounted"}
    assert "0 B freed" in node.run("cache", "evict").out
    node.holds(TINY)
    node.run("unmount", node.m)
    assert "pinned" in node.run("pin", "hf://acme/tiny", "--until", "7d").out
    assert str(held(node)["hf://acme/tiny"]).startswith("pinned until 2")
    assert "0 B freed" in node.run("cache", "evict").out
    node.run("pin", "hf://acme/tiny", "--off")
    assert "68.4 KiB freed" in node.run("cache", "evict").out


def test_pin_fetches_what_is_missing_and_off_does_not(node: Node, hub: HubServer) -> None:
    node.run("pin", "hf://acme/tiny", "--off")
    assert hub.bytes_sent == 0
    spec = node.spec({"source": "hf://acme/tiny", "mount_location": "anywhere"})
    node.run("pin", spec, "--until", "1h")
    assert hub.bytes_sent == TINY_BYTES
    assert held(node)["hf://acme/tiny"]


def test_the_least_recently_used_goes_first(node: Node, hub: HubServer) -> None:
    node.configure(cache={"capacity": "64MiB"})
    hub.commit("acme/one", {"w.bin": b"1" * (20 << 20)})
    hub.commit("acme/two", {"w.bin": b"2" * (20 << 20)})
    hub.commit("acme/three", {"w.bin": b"3" * (30 << 20)})
    node.run("prefetch", "hf://acme/one")
    node.run("prefetch", "hf://acme/two")
    node.run("prefetch", "hf://acme/one")
    node.run("prefetch", "hf://acme/three")
    whole = {item["source"] for item in node.run("cache", "ls", "--json").json if item["whole"]}
    assert whole == {"hf://acme/one", "hf://acme/three"}
    assert node.run("cache", "du", "--json").json["present_bytes"] <= 64 << 20


def test_verify_finds_damage_and_the_next_mount_mends_it(node: Node, hub: HubServer) -> None:
    node.run("prefetch", "hf://acme/big")
    assert node.run("cache", "verify").out == "2 blobs rehashed, 0 bad\n"
    blob = max((path for path in (node.cache / "blobs").glob("*/*")), key=lambda path: path.stat().st_size)
    stat = blob.stat()
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(12345)
        file.write(b"damage")
    os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    blob.chmod(0o444)
    done = node.run("cache", "verify", code=6)
    assert "1 of 2 blobs were damaged" in done.error
    assert "chunk 0 of 3" in done.out
    hub.reset()
    node.run("prefetch", "hf://acme/big")
    node.run("mount", "hf://acme/big", node.m)
    node.holds(BIG)
    assert 0 < hub.bytes_sent <= BIG_BYTES
    node.run("unmount", node.m)
    node.clean()


def test_a_blob_that_was_written_to_is_found_at_mount(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    blob = max((path for path in (node.cache / "blobs").glob("*/*")), key=lambda path: path.stat().st_size)
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.write(b"damage")
    node.run("mount", "hf://acme/tiny", node.m)
    node.holds(TINY)
    node.run("unmount", node.m)
    node.clean()


@pytest.fixture
def small_disk(node: Node) -> Iterator[Node]:
    """A node whose cache lies on a disk of its own, 100 MiB."""
    node.cache.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "small", node.cache], check=True)
    yield node
    node.end()


def test_a_disk_too_small_is_refused_before_the_first_byte(small_disk: Node, hub: HubServer) -> None:
    hub.commit(
        "acme/huge",
        {"m.bin": b"x"},
        tree=[{"type": "file", "oid": "0" * 40, "size": 1 << 30, "path": "m.bin"}],
    )
    small_disk.refused(4, "mount", "hf://acme/huge", small_disk.m, says=["needs 1 GiB", "the disk has"])
    assert hub.bytes_sent == 0


def test_a_disk_that_others_fill_meanwhile(small_disk: Node, hub: HubServer) -> None:
    node = small_disk
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=8e6)
    filling = node.start("prefetch", "hf://acme/big")
    until(lambda: hub.bytes_sent > 0, "the first bytes")
    ballast = node.cache / "ballast"
    subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], capture_output=True)
    said = filling.wait(4).error
    assert "hf://acme/big" in said or "blobs" in said
    # Once there is room again, it goes on; and deleting works on a full disk too.
    hub.faults.clear()
    node.run("cache", "evict")
    ballast.unlink()
    node.run("prefetch", "hf://acme/big")
    node.run("cache", "verify")


def test_a_broken_index_is_rebuilt(node: Node, hub: HubServer) -> None:
    node.run("prefetch", "hf://acme/tiny")
    (node.cache / "index.lmdb").write_bytes(b"not an index" * 1000)
    hub.reset()
    node.run("mount", "hf://acme/tiny", node.m)
    node.holds(TINY)
    assert hub.bytes_sent == 0
    node.run("unmount", node.m)
    assert json.dumps(node.run("cache", "ls", "--json").json)
    node.clean()
