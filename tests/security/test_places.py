"""Where a spec may have things appear, and where not: never in the cache, never through a planted link."""

import os
from pathlib import Path

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import TINY
from tests.commands.node import Node


def test_the_cache_itself_is_no_mountpoint(node: Node) -> None:
    """Nor what lies in it, nor through a link, nor what it lies in: an eviction would meet the mount."""
    node.run("prefetch", "hf://acme/tiny")
    (node.place / "link").symlink_to(node.cache / "trash")
    places = [node.cache, node.cache / "new", node.cache / "trash", node.cache / "trees" / "x",
              node.place / "link" / "y", node.place]  # fmt: skip
    for place in places:
        for words in (("mount", "hf://acme/tiny", place), ("run", "hf://acme/tiny", place, "--", "true")):
            assert str(place) in node.refused(8, *words)
        said = node.run("stage", "hf://acme/tiny", place, code=8).error
        assert str(place) in said
    assert not (node.cache / "new").exists()
    assert list((node.cache / "trash").iterdir()) == []
    node.run("cache", "evict", "--older-than", "0s")
    node.run("mount", "hf://acme/tiny", node.m)
    node.holds(TINY)
    node.run("unmount", node.m)
    node.clean()


def test_a_symlinked_parent_is_where_it_leads_and_stays_in_one_piece(node: Node) -> None:
    """The mount appears where the link leads; what is unmounted later is that, also by the other name."""
    (node.place / "real").mkdir()
    (node.place / "link").symlink_to(node.place / "real")
    node.run("mount", "hf://acme/tiny", node.place / "link" / "m")
    assert [mount.mountpoint for mount in node.mounts()] == [str(node.place / "real" / "m")]
    node.holds(TINY, node.place / "real" / "m")
    node.run("unmount", node.place / "link" / "m")
    assert node.mounts() == []
    assert os.listdir(node.place / "real") == []


def test_two_names_for_one_place_are_not_both_mounted(node: Node) -> None:
    """One source inside another through a link: refused, with nothing left, or mounted side by side whole."""
    (node.place / "real").mkdir()
    (node.place / "link").symlink_to(node.place / "real")
    spec = node.spec(
        {"source": "hf://acme/tiny", "mount_location": f"{node.place}/real/m"},
        {"source": "hf://acme/big", "mount_location": f"{node.place}/link/m"},
    )
    done = node.run("mount", spec, code=None)
    assert done.code != 0, "the second hides the first"
    assert f"{node.place}" in done.error
    assert node.mounts() == []


def test_the_kernels_own_trees_through_a_link(node: Node, hub: HubServer) -> None:
    for tree in ("/proc", "/sys", "/dev/shm"):
        link = node.place / f"to{tree.replace('/', '-')}"
        link.symlink_to(tree)
        node.refused(2, "mount", "hf://acme/tiny", link / node.place.name, says=[str(link)])
        assert not os.path.lexists(f"{tree}/{node.place.name}")


def test_stage_writes_nothing_through_links_planted_at_its_place(node: Node) -> None:
    outside = node.place / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("mine")
    destination = node.place / "staged"
    destination.symlink_to(outside)
    node.refused(8, "stage", "hf://acme/tiny", destination, says=[str(destination)])
    destination.unlink()
    destination.mkdir()
    for name in ("config.json", "model.safetensors"):
        (destination / name).symlink_to(outside / name)
    node.refused(8, "stage", "hf://acme/tiny", destination, says=["not empty"])
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"config.json": "mine"}
    for name in ("config.json", "model.safetensors"):
        (destination / name).unlink()
    node.run("stage", "hf://acme/tiny", destination)
    node.holds(TINY, destination)
    assert sorted(os.listdir(outside)) == ["config.json"]


def test_what_is_staged_through_a_linked_parent_lies_where_that_leads(node: Node) -> None:
    (node.place / "real").mkdir()
    (node.place / "link").symlink_to(node.place / "real")
    node.run("stage", "hf://acme/tiny", node.place / "link" / "staged")
    node.holds(TINY, node.place / "real" / "staged")
    assert sorted(os.listdir(node.place / "real")) == ["staged"]
    assert Path(node.place / "link").is_symlink()
