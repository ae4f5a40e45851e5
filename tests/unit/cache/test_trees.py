"""Trees: what a mount shows, whatever was done to it, also beyond 65,000 links."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import SpaceError
from bdnfs.core.units import TREE_MTIME_S
from tests.unit.cache.stocked import (
    FEW,
    admit,
    check_books,
    content,
    fill,
    finished,
    manifest_of,
    orphans,
    python,
    shown,
    stock,
)

Opened = Callable[..., NodeCache]
EVER = float("inf")


def whole(cache: NodeCache, snapshot: str) -> Path:
    tree = cache.whole_tree(snapshot)
    assert tree is not None
    return tree


def test_a_tree_is_read_only_old_and_made_of_links(cache: NodeCache) -> None:
    tree = whole(cache, stock(cache, FEW))
    for path in (tree, *tree.rglob("*")):
        status = path.lstat()
        assert status.st_mtime == TREE_MTIME_S, path
        assert stat.S_IMODE(status.st_mode) == (0o555 if path.is_dir() else 0o444), path
    assert (tree / "model.bin").stat().st_nlink == 2
    assert (tree / "empty").stat().st_nlink == 1


def remove(tree: Path) -> None:
    (tree / "config.json").unlink()


def write(tree: Path) -> None:
    (tree / "config.json").write_bytes(b"[]")


def touch(tree: Path) -> None:
    os.utime(tree / "model.bin")


def grow(tree: Path) -> None:
    with (tree / "model.bin").open("ab") as file:
        file.write(b"more")


def replace(tree: Path) -> None:
    """Another file of the same size, mode and time."""
    status = (tree / "config.json").stat()
    (tree / "config.json").unlink()
    (tree / "config.json").write_bytes(b"[]")
    os.chmod(tree / "config.json", 0o444)
    os.utime(tree / "config.json", ns=(status.st_atime_ns, status.st_mtime_ns))


def open_up(tree: Path) -> None:
    os.chmod(tree / "model.bin", 0o666)


def fill_empty(tree: Path) -> None:
    (tree / "empty").write_bytes(b"x")


def drop_all(tree: Path) -> None:
    tree.rename(tree.parent.parent / "elsewhere")


def put_a_link(tree: Path) -> None:
    elsewhere = tree.parent.parent / "elsewhere"
    tree.rename(elsewhere)
    tree.symlink_to(elsewhere)


def put_a_file(tree: Path) -> None:
    drop_all(tree)
    tree.write_bytes(b"")


@pytest.mark.parametrize(
    "hurt", [remove, write, touch, grow, replace, open_up, fill_empty, drop_all, put_a_link, put_a_file]
)
def test_what_was_done_to_a_tree_is_never_shown(cache: NodeCache, hurt: Callable[[Path], None]) -> None:
    snapshot = stock(cache, FEW)
    hurt(whole(cache, snapshot))
    tree = cache.whole_tree(snapshot)
    if tree is None:  # the blob itself was written to
        assert hurt in (write, grow)
        _, pin = admit(cache, manifest_of(FEW))
        tree = fill(cache, snapshot, FEW)
        pin.close()
    assert shown(tree) == FEW
    assert not tree.is_symlink()
    assert cache.whole_tree(snapshot) == tree
    check_books(cache)


def test_a_blob_that_was_only_touched_is_rehashed_once(
    cache: NodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = stock(cache, FEW)
    touch(whole(cache, snapshot))
    read: list[bytes] = []
    real = cache._verifier.verify
    monkeypatch.setattr(cache._verifier, "verify", lambda blob: (read.append(blob), real(blob))[1])
    whole(cache, snapshot)
    assert len(read) == 1
    whole(cache, snapshot)
    assert len(read) == 1


def test_a_lost_tree_is_linked_again_without_rehashing(
    cache: NodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = stock(cache, FEW)
    drop_all(whole(cache, snapshot))
    monkeypatch.setattr(cache._verifier, "verify", lambda blob: pytest.fail("rehashed"))
    assert shown(whole(cache, snapshot)) == FEW


def test_a_blob_missing_under_its_name_is_fetched_again_for_the_next_snapshot(cache: NodeCache) -> None:
    snapshot = stock(cache, FEW)
    for path in cache.layout.blobs.glob("*/*"):
        path.unlink()
    assert shown(whole(cache, snapshot)) == FEW
    files = {**FEW, "more": b"more"}
    other, pin = admit(cache, manifest_of(files, "2" * 40))
    for blob, row in cache.blobs():
        if row.whole and not cache.looks_sealed(blob, row):
            assert cache.verify_blob(blob) == "its file is missing"
    assert shown(fill(cache, other, files)) == files
    pin.close()


PUBLISH = """
import sys
from pathlib import Path
from tests.unit.cache.stocked import *
cache = open_cache(Path(sys.argv[1]))
pin = cache.pin(sys.argv[2])
sys.stdin.readline()
print(shown(cache.publish_snapshot(sys.argv[2])) == FEW)
"""


def test_several_processes_publish_one_snapshot(cache: NodeCache) -> None:
    snapshot, pin = admit(cache, manifest_of(FEW))
    tree = fill(cache, snapshot, FEW)
    with cache._index.write(deletes=True) as txn:
        from bdnfs.cache.known import not_whole
        from bdnfs.cache.ledger import Ledger

        ledger = Ledger(txn)
        row = ledger.snapshot(snapshot)
        assert row is not None
        not_whole(ledger, snapshot, row)
    drop_all(tree)
    processes = [python(PUBLISH, cache.layout.root, snapshot) for _ in range(4)]
    assert finished(processes) == ["True\n"] * 4
    assert shown(whole(cache, snapshot)) == FEW
    pin.close()
    cache.evict(unused_since_s=EVER, dry_run=False)
    assert not orphans(cache)


def test_beyond_65000_links_a_copy_is_made_once_and_charged(
    opened: Opened, filesystem: Callable[..., Path]
) -> None:
    place = filesystem("ext4", 96)
    cache = opened(place / "cache")
    same = content("label", 5000)
    small = {"one": same}
    stock(cache, small, "1" * 40)
    blob = cache.layout.blob(cache.blobs()[0][0])
    links = place / "links"
    links.mkdir()
    names = iter(range(70_000))
    while os.stat(blob).st_nlink < 65_000:
        os.link(blob, links / str(next(names)))
    files = {f"dir{number}/label": same for number in range(5)}
    snapshot = stock(cache, files, "2" * 40)
    tree = whole(cache, snapshot)
    assert shown(tree) == files
    inodes = {path.stat().st_ino for path in tree.rglob("label")}
    assert len(inodes) == 1
    assert inodes != {blob.stat().st_ino}
    assert cache.usage().charged_bytes == 10_000
    check_books(cache)
    assert cache.whole_tree(snapshot) == tree
    eviction = cache.evict(unused_since_s=EVER, dry_run=False)
    assert eviction.freed_bytes == 10_000
    assert cache.usage().charged_bytes == 0
    assert not orphans(cache)


def test_copies_that_do_not_fit_are_refused(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without hardlinks holds everything twice: the capacity counts that."""
    cache = opened(capacity_bytes=1_000_000)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("bdnfs.cache.trees.os.link", refuse)
    files = {"m": content("m", 600_000)}
    snapshot, pin = admit(cache, manifest_of(files))
    with pytest.raises(SpaceError, match="copies"):
        fill(cache, snapshot, files)
    assert cache.whole_tree(snapshot) is None
    assert not cache.layout.tree(snapshot).exists()
    pin.close()
    small = {"s": content("s", 400_000)}
    tree = whole(cache, stock(cache, small, "2" * 40))
    assert shown(tree) == small
    assert cache.usage().charged_bytes == 800_000
    check_books(cache)
