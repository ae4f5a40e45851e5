"""The main job on every filesystem that a cache may lie on; what one can't do, `doctor` says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.cache.blobs import punch_hole
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, forker, hub, nodes, served
from tests.commands.node import Node
from tests.storage.disks import Disks, Mounted

__all__ = ["forker", "hub", "nodes", "served"]

# ext4 is what the other tests run on.
KINDS = ["xfs", "btrfs", "tmpfs", "overlay", pytest.param("ext4", marks=pytest.mark.long)]
# What doctor says of the ones that are not for a cache; it says nothing of the others.
UNFIT = {"tmpfs": "empty after a restart", "overlay": "gone with the container"}


def disk_of(disks: Disks, kind: str) -> Mounted:
    if kind == "tmpfs":
        return disks.tmpfs(200)
    if kind == "overlay":
        return disks.overlay(disks.mount(disks.image("ext4", 200), "ext4").at)
    return disks.mount(disks.image(kind, 200), kind)


def node_on(nodes: Callable[..., Node], at: Path) -> Node:
    """Return a node whose cache lies there."""
    node = nodes()
    node.cache = at / "cache"
    node.environment["BDNFS_CACHE_DIR"] = str(node.cache)
    return node


@pytest.mark.parametrize("kind", KINDS)
def test_the_main_job_and_what_doctor_says_on(
    nodes: Callable[..., Node], disks: Disks, hub: HubServer, kind: str
) -> None:
    node = node_on(nodes, disk_of(disks, kind).at)
    node.run("mount", "hf://acme/big", node.m)
    assert node.shown() == "native"
    node.holds(BIG)
    assert node.run("cache", "evict").out == "0 B freed\n"  # what is mounted stays
    node.run("unmount", node.m)
    hub.reset()
    (node.cache / "index.broken").touch()
    node.run("mount", "hf://acme/big", node.m)
    node.holds(BIG)
    assert not hub.bytes_sent
    node.run("unmount", node.m)
    node.run("cache", "evict")
    assert not list((node.cache / "blobs").glob("*/*"))
    holes_can_be_punched(node.cache)
    node.clean()
    said = {item["name"]: item for item in node.run("doctor", "--json").json}
    assert kind in said["cache filesystem"]["detail"]
    assert said["cache filesystem"]["ok"] == (kind not in UNFIT)
    assert UNFIT.get(kind, "") in said["cache filesystem"]["detail"]
    assert said["hard links"]["ok"]
    assert (said["reflinks"]["detail"] == "work") == (kind in ("xfs", "btrfs"))


def holes_can_be_punched(place: Path) -> None:
    """As `--no-fill` does."""
    with (place / "scratch").open("w+b") as file:
        file.write(b"x" * (1 << 20))
        file.flush()
        punch_hole(file.fileno(), 0, 1 << 19)
        file.seek(0)
        assert file.read() == bytes(1 << 19) + b"x" * (1 << 19)
    (place / "scratch").unlink()


def test_doctor_says_that_a_cache_may_not_be_written(
    nodes: Callable[..., Node], disks: Disks, hub: HubServer
) -> None:
    disk = disks.mount(disks.image("ext4", 96), "ext4")
    node = node_on(nodes, disk.at)
    node.run("prefetch", "hf://acme/tiny")
    disk.remount("ro")
    said = node.start("doctor").wait(None).out
    assert "Read-only file system" in said
    assert "read-only" in node.refused(9, "mount", "hf://acme/tiny", node.m).lower()
    disk.remount("rw")
    node.run("mount", "hf://acme/tiny", node.m)
    node.run("unmount", node.m)
