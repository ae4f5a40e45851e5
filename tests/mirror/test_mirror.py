"""`bdnfs mirror`, and mounts through a mirror: each byte leaves its upstream once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, TINY, forker, hub, nodes, served
from tests.commands.node import Node

__all__ = ["forker", "hub", "nodes", "served"]

Nodes = Callable[..., Node]


@pytest.fixture
def mirrored(nodes: Nodes, tmp_path: Path) -> Callable[..., Node]:
    """Make nodes that share one mirror, a directory."""

    def make(**config: object) -> Node:
        node = nodes()
        node.configure(mirror=str(tmp_path / "mirror"), **config)
        return node

    return make


def test_what_was_mirrored_mounts_with_upstream_down(mirrored: Callable[..., Node], hub: HubServer) -> None:
    (source,) = mirrored().run("mirror", "hf://acme/big", "--json").json["sources"]
    assert source["moved_bytes"] == BIG_BYTES
    assert hub.bytes_sent == BIG_BYTES
    node = mirrored()
    node.environment["HF_ENDPOINT"] = hub.url
    hub.reset()
    assert hub.bytes_sent == 0
    node.run("mount", "hf://acme/big", node.m)
    node.holds(BIG)
    assert hub.bytes_sent == 0
    node.run("unmount", node.m)
    node.check_cache()


def test_a_mount_mirrors_on_its_way(mirrored: Callable[..., Node], hub: HubServer) -> None:
    one, two = mirrored(), mirrored()
    one.run("mount", "hf://acme/big", one.m)
    one.holds(BIG)
    assert hub.bytes_sent == BIG_BYTES
    two.run("mount", "hf://acme/big", two.m)
    two.holds(BIG)
    assert hub.bytes_sent == BIG_BYTES
    (source,) = one.run("mirror", "hf://acme/big", "--json").json["sources"]
    assert source["moved_bytes"] == 0
    for node in (one, two):
        node.run("unmount", node.m)
        node.check_cache()


def test_a_second_run_moves_nothing(mirrored: Callable[..., Node], hub: HubServer) -> None:
    node = mirrored()
    first = node.run("mirror", "hf://acme/tiny").out
    assert "moved" in first
    hub.reset()
    assert "nothing moved" in node.run("mirror", "hf://acme/tiny").out
    assert hub.bytes_sent == 0
    assert sum(map(len, TINY.values())) > 0


def test_a_volume_is_a_source(mirrored: Callable[..., Node], hub: HubServer) -> None:
    (source,) = mirrored().run("mirror", "hf://acme/big@main", "--json").json["sources"]
    volume, digest = source["ref"].split("@")
    node = mirrored()
    hub.reset()
    for ref in (volume, f"{volume}:main", f"{volume}@{digest[3:15]}", source["ref"]):
        node.run("mount", ref, node.m)
        node.holds(BIG)
        node.run("unmount", node.m)
    node.run("mount", f"{volume}/config.json", node.m)
    node.holds({"config.json": BIG["config.json"]})
    node.run("unmount", node.m)
    assert hub.bytes_sent == 0
    assert "nothing.bin" in node.refused(5, "mount", f"{volume}/nothing.bin", node.m)
    assert "no such tag" in node.refused(5, "mount", f"{volume}:other", node.m)
    node.check_cache()


def test_a_file_known_by_both_digests_is_one_blob(mirrored: Callable[..., Node], hub: HubServer) -> None:
    node = mirrored()
    (source,) = node.run("mirror", "hf://acme/big", "--json").json["sources"]
    node.run("mount", "hf://acme/big", node.m)
    node.run("mount", source["ref"], node.place / "volume")
    node.holds(BIG, node.place / "volume")
    assert len(list((node.cache / "blobs").glob("*/*"))) == len(BIG)
    for place in (node.m, node.place / "volume"):
        node.run("unmount", place)
    node.check_cache()


def test_tenants_share_nothing(
    mirrored: Callable[..., Node], nodes: Nodes, tmp_path: Path, hub: HubServer
) -> None:
    one, two = mirrored(tenant="one"), mirrored(tenant="two")
    two.environment["BDNFS_CACHE_DIR"] = str(one.cache)  # of one user, two tenants
    one.run("prefetch", "hf://acme/big")
    sent = hub.bytes_sent
    two.run("prefetch", "hf://acme/big")
    assert hub.bytes_sent == 2 * sent == 2 * BIG_BYTES
    assert len(list((one.cache / "blobs").glob("*/*"))) == 2 * len(BIG)
    orgs = {path.name for path in (tmp_path / "mirror" / "bdn").iterdir()}
    assert orgs == {"one", "two"}
    one.check_cache()
