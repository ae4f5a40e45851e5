"""docs/semantics.md, "With a mirror"."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES
from tests.commands.node import Node
from tests.commands.test_cache_import import downloaded

BRANCH = "hf://acme/big@main"
# The last, short chunk of BIG's one large file.
LAST_BYTES = BIG_BYTES % (8 << 20) - len(BIG["config.json"])


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


@pytest.fixture
def mirrored(nodes: Callable[..., Node], mirror: Path) -> Callable[..., Node]:
    """Make nodes that share one mirror, a directory."""

    def make(**config: object) -> Node:
        node = nodes()
        node.configure(mirror=str(mirror), **config)
        return node

    return make


def blobs(node: Node) -> int:
    return len(list((node.cache / "blobs").glob("*/*")))


def test_a_mirrored_snapshot_mounts_with_upstream_down(mirrored: Callable[..., Node], hub: HubServer) -> None:
    (source,) = mirrored().run("mirror", BRANCH, "--json").json["sources"]
    node = mirrored()  # that never fetched anything
    pinned = f"hf://acme/big@{source['revision']}"
    locked = node.spec({"source": BRANCH, "mount_location": str(node.m)})
    node.run("lock", locked)
    hub.stop()
    try:
        for asked, warns in ((BRANCH, True), (pinned, False), (locked, False), (source["ref"], False)):
            done = node.run("mount", asked, *([] if asked == locked else [node.m]))
            assert ("what was mirrored last" in done.err) == warns, done.err
            assert "from mirror" in done.err
            node.holds(BIG)
            node.run("unmount", node.m)
            node.run("cache", "evict")
            assert not blobs(node)
        # What was never mirrored is not there.
        node.refused(5, "mount", "hf://acme/tiny@main", node.m)
    finally:
        hub.start()
    node.clean()


def test_what_the_mirror_lacks_is_mirrored_on_the_way(mirrored: Callable[..., Node], hub: HubServer) -> None:
    one, two = mirrored(), mirrored()
    one.run("mount", BRANCH, one.m)
    one.holds(BIG)
    assert hub.bytes_sent == BIG_BYTES
    # A new revision: of it upstream is asked only for what is new.
    changed = {**BIG, "config.json": b'{"architectures": ["Other"]}\n'}
    hub.commit("acme/big", changed)
    two.run("mount", BRANCH, two.m)
    two.holds(changed)
    assert hub.bytes_sent == BIG_BYTES + len(changed["config.json"])
    rows = one.run("mirror", "ls", "--json").json["versions"]
    assert [row["tags"] for row in rows] == [[], ["main"]]
    assert "2 versions checked, 0 damaged" in one.run("mirror", "verify").out
    one.holds(BIG)
    for node in (one, two):
        node.run("unmount", node.m)
        node.clean()


def test_a_mirror_that_fails_never_fails_a_mount(nodes: Callable[..., Node], hub: HubServer) -> None:
    node = nodes()
    node.configure(mirror="s3://nobody/there")
    keys = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "none"}
    done = node.run("mount", BRANCH, node.m, AWS_ENDPOINT_URL="http://127.0.0.1:9", **keys)
    assert "going on without the mirror" in done.err
    node.holds(BIG)
    node.run("unmount", node.m)
    # Whoever asks for the mirror itself is told.
    node.refused(5, "mirror", BRANCH, AWS_ENDPOINT_URL="http://127.0.0.1:9", **keys)
    node.clean()


def test_tenants_share_nothing(mirrored: Callable[..., Node], hub: HubServer, mirror: Path) -> None:
    one, two = mirrored(tenant="one"), mirrored(tenant="two")
    two.environment["BDNFS_CACHE_DIR"] = str(one.cache)  # of one user, two tenants
    one.run("prefetch", BRANCH)
    assert hub.bytes_sent == BIG_BYTES
    (row,) = one.run("mirror", "ls", "--json").json["versions"]
    assert two.run("mirror", "ls", "--json").json["versions"] == []
    two.refused(5, "mount", row["ref"], two.m)
    two.run("prefetch", BRANCH)
    assert hub.bytes_sent == 2 * BIG_BYTES
    assert blobs(one) == 2 * len(BIG)
    assert {path.name for path in (mirror / "bdn").iterdir()} == {"one", "two"}


def test_a_rerun_moves_nothing(mirrored: Callable[..., Node], hub: HubServer) -> None:
    node = mirrored()
    (first,) = node.run("mirror", BRANCH, "--json").json["sources"]
    hub.reset()
    (again,) = node.run("mirror", BRANCH, "--json").json["sources"]
    assert again["ref"] == first["ref"]
    assert again["moved_bytes"] == 0
    assert first["moved_bytes"] == BIG_BYTES
    assert hub.bytes_sent == 0


def test_a_damaged_mirror_object_is_found_named_and_fetched_from_upstream(
    mirrored: Callable[..., Node], hub: HubServer, mirror: Path
) -> None:
    node = mirrored()
    node.run("mirror", BRANCH)
    (bad,) = (path for path in mirror.glob("bdn/*/*/objects/b3/*/*/*") if path.stat().st_size == LAST_BYTES)
    content = bytearray(bad.read_bytes())
    content[100] ^= 1
    bad.chmod(0o600)
    bad.write_bytes(content)
    hub.reset()
    said = node.run("mount", BRANCH, node.m).err
    assert bad.name in said
    assert "bdnfs mirror verify --repair" in said
    node.holds(BIG)
    assert hub.bytes_sent == LAST_BYTES
    node.run("unmount", node.m)
    assert bad.name in node.run("mirror", "verify", code=6).err
    assert "1 damaged, 1 repaired" in node.run("mirror", "verify", "--repair").out
    assert "0 damaged" in node.run("mirror", "verify").out
    node.clean()


def test_what_was_imported_is_not_fetched(node: Node, hub: HubServer) -> None:
    downloaded(node, "acme/big", patterns=["model.safetensors"])
    hub.reset()
    node.run("cache", "import")
    assert hub.bytes_sent == 0
    node.run("mount", "hf://acme/big", node.m)
    node.holds(BIG)
    assert hub.bytes_sent == len(BIG["config.json"])
    node.run("unmount", node.m)
    node.clean()
