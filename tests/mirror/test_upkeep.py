"""`mirror ls | verify | rm | gc` and `purge`: what is in the mirror, whether it is whole, and what goes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, TINY, forker, hub, nodes, served
from tests.commands.node import Node

__all__ = ["forker", "hub", "nodes", "served"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


@pytest.fixture
def node(nodes: Callable[..., Node], place: Path) -> Node:
    found = nodes()
    found.configure(mirror=str(place))
    return found


def objects(place: Path) -> dict[str, Path]:
    """Return the objects of every namespace, by their hex digits."""
    return {path.name: path for path in (place / "bdn").glob("*/*/objects/b3/*/*/*")}


def damage(path: Path) -> None:
    """Flip a byte, as a bad disk does."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def of_size(place: Path, size: int) -> Path:
    (found,) = [path for path in objects(place).values() if path.stat().st_size == size]
    return found


def test_what_is_there_is_listed(node: Node, place: Path, hub: HubServer) -> None:
    assert "no such directory" in node.refused(5, "mirror", "ls")
    place.mkdir()
    assert "holds nothing yet" in node.run("mirror", "ls").out
    for source in ("hf://acme/big@main", "hf://acme/tiny"):
        node.run("mirror", source)
    versions = node.run("mirror", "ls", "--json").json["versions"]
    assert [(each["source"], each["tags"], each["sequence"]) for each in versions] == [
        ("hf://acme/big", ["main"], 1),
        ("hf://acme/tiny", [], 1),
    ]
    assert [each["bytes"] for each in versions] == [BIG_BYTES, sum(map(len, TINY.values()))]
    shown = node.run("mirror", "ls", versions[0]["ref"].split("@")[0]).out
    assert ":main" in shown
    assert "acme/tiny" not in shown
    assert "no version of it" in node.refused(5, "mirror", "ls", "bdn:weights/other")


LAST_CHUNK, CHUNK = 12_345, 8 << 20


@pytest.mark.parametrize("how", ["flipped", "lost"])
@pytest.mark.parametrize("what", ["chunk", "chunkmap", "manifest", "listing"])
def test_damage_is_found_and_mended(node: Node, place: Path, hub: HubServer, what: str, how: str) -> None:
    node.run("mirror", "hf://acme/big")
    before = {name: path.read_bytes() for name, path in objects(place).items()}
    (row,) = node.run("mirror", "ls", "--json").json["versions"]
    path = {
        "chunk": lambda: of_size(place, LAST_CHUNK),
        "chunkmap": lambda: next(
            p for p in objects(place).values() if b"chunkmap_header" in p.read_bytes()[:40]
        ),
        "manifest": lambda: objects(place)[row["digest"][3:]],
        "listing": lambda: next((place / "volumes").glob("*/*/*/listings/*.json")),
    }[what]()
    if how == "flipped":
        damage(path)
    else:
        path.unlink()
    hub.reset()
    said = node.run("mirror", "verify", code=6)
    assert path.name in said.err
    assert "--repair" in said.error
    assert "1 versions checked, 1 damaged, 0 repaired" in said.out
    assert not hub.bytes_sent
    assert "1 damaged, 1 repaired" in node.run("mirror", "verify", "--repair").out
    assert hub.bytes_sent == {"chunk": LAST_CHUNK, "chunkmap": BIG_BYTES - len(BIG["config.json"])}.get(
        what, hub.bytes_sent
    )
    assert {name: path.read_bytes() for name, path in objects(place).items()} == before
    assert "0 damaged" in node.run("mirror", "verify").out
    other = node.place / "other"
    node.run("mount", row["ref"], other)
    node.holds(BIG, other)
    node.run("unmount", other)


def test_a_damaged_chunk_comes_from_upstream_and_is_named(node: Node, place: Path, hub: HubServer) -> None:
    node.run("mirror", "hf://acme/big")
    bad = of_size(place, LAST_CHUNK)
    damage(bad)
    hub.reset()
    said = node.run("mount", "hf://acme/big", node.m).err
    assert bad.name in said
    assert "mirror verify --repair" in said
    node.holds(BIG)
    assert hub.bytes_sent == LAST_CHUNK
    node.run("unmount", node.m)


def test_what_upstream_has_no_more_can_not_be_mended(node: Node, place: Path, hub: HubServer) -> None:
    node.run("mirror", "hf://acme/big")
    damage(of_size(place, LAST_CHUNK))
    node.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    said = node.run("mirror", "verify", "--repair", code=6)
    assert "can't be repaired" in said.err
    assert "0 repaired" in said.out


def test_a_removed_version_leaves_what_others_need(node: Node, place: Path, hub: HubServer) -> None:
    for source in ("hf://acme/big@main", "hf://acme/tiny"):
        node.run("mirror", source)
    big, tiny = node.run("mirror", "ls", "--json").json["versions"]
    assert "names a volume" in node.refused(2, "mirror", "rm", big["ref"].split("@")[0])
    node.run("mirror", "rm", f"{big['ref'].split('@')[0]}:main")
    assert [row["ref"] for row in node.run("mirror", "ls", "--json").json["versions"]] == [tiny["ref"]]
    had = len(objects(place))
    assert node.run("mirror", "gc", "--json").json == {"objects": 0, "bytes": 0, "kept": 5}
    assert len(objects(place)) == had
    assert node.run("mirror", "gc", "--grace", "0s", "--dry-run", "--json").json["objects"] == 5
    assert len(objects(place)) == had
    # The config.json of both is one object: it stays.
    assert node.run("mirror", "gc", "--grace", "0s", "--json").json["objects"] == 5
    assert len(objects(place)) == had - 5
    assert "0 damaged" in node.run("mirror", "verify").out
    hub.reset()
    (again,) = node.run("mirror", "hf://acme/big", "--json").json["sources"]
    assert again["ref"] == big["ref"]
    assert again["moved_bytes"] == BIG_BYTES - len(BIG["config.json"])
    assert hub.bytes_sent == BIG_BYTES
    assert "0 damaged" in node.run("mirror", "verify").out


def test_a_purged_tenant_has_nothing_left(node: Node, place: Path, hub: HubServer) -> None:
    node.configure(mirror=str(place), tenant="other")
    node.run("prefetch", "hf://acme/tiny")
    node.configure(mirror=str(place), tenant="acme")
    node.run("mount", "hf://acme/tiny", node.m)
    assert "unmount it first" in node.refused(8, "purge", "--tenant", "acme", "--yes")
    node.run("unmount", node.m)
    assert "--yes" in node.refused(2, "purge", "--tenant", "acme")
    assert "acme" in str(sorted(place.glob("bdn/*")))
    node.run("purge", "--tenant", "acme", "--yes")
    left = {path.relative_to(place).parts[1] for path in place.rglob("*.json") if ".bdnfs" not in path.parts}
    assert left == {"other"}
    assert {path.name for path in (place / "bdn").iterdir() if any(path.rglob("*/objects/b3/*/*/*"))} == {
        "other"
    }
    assert [row["tenant"] for row in node.run("cache", "ls", "--json").json] == ["other"]
    node.check_cache()


NAMES = {
    "version": "versions/*.json",
    "revision": "revisions/*.json",
    "head": "head.json",
    "tag": "tags/main.json",
    "branch": "branches/*.json",
}


@pytest.mark.parametrize("how", ["torn", "lost"])
@pytest.mark.parametrize("what", NAMES)
def test_a_name_is_written_again(node: Node, place: Path, hub: HubServer, what: str, how: str) -> None:
    node.run("mirror", "hf://acme/big@main")
    (row,) = node.run("mirror", "ls", "--json").json["versions"]
    (path,) = (place / "volumes/default/weights").glob(f"*/{NAMES[what]}")
    told = path.read_bytes()
    if how == "torn":
        path.chmod(0o600)
        path.write_bytes(b"{")
    else:
        path.unlink()
    if how == "torn" or what == "version":  # what only leads there, and is not there, is no damage
        said = node.run("mirror", "verify", code=6)
        assert path.name in said.err
        assert "--repair" in said.error
        refused = node.refused(6, "mirror", "gc", "--grace", "0s")
        assert "Nothing was collected" in refused
    hub.reset()
    node.run("mirror", "verify", "--repair")
    assert not hub.bytes_sent
    if how == "torn" or what == "version":
        assert path.read_bytes() == told
    assert [each["ref"] for each in node.run("mirror", "ls", "--json").json["versions"]] == [row["ref"]]
    assert "0 damaged" in node.run("mirror", "verify").out
    node.run("mirror", "gc", "--grace", "0s")
    node.run("mount", row["ref"], node.m)
    node.holds(BIG)
    node.run("unmount", node.m)


def test_a_lost_row_is_written_again_by_the_next_mirroring(node: Node, place: Path, hub: HubServer) -> None:
    node.run("mirror", "hf://acme/big@main")
    (path,) = (place / "volumes").rglob("versions/*.json")
    told = path.read_bytes()
    path.unlink()
    hub.reset()
    node.run("mirror", "hf://acme/big@main")
    assert hub.bytes_sent <= len(BIG["config.json"])
    assert path.stem in str(node.run("mirror", "ls", "--json").json)
    assert "0 damaged" in node.run("mirror", "verify").out
    assert told
