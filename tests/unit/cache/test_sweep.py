"""What a process that died may leave is found by the next that admits."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.cache.locks import open_lock_file, try_lock
from bdnfs.cache.node import NodeCache
from bdnfs.core.units import MIB
from tests.unit.cache.stocked import (
    FEW,
    Mounts,
    admit,
    check_books,
    content,
    kill,
    line_of,
    manifest_of,
    orphans,
    python,
    shown,
    stock,
)

Opened = Callable[..., NodeCache]


def sweep(cache: NodeCache) -> None:
    _, pin = admit(cache, manifest_of({"next": content("next", 1)}, "9" * 40))
    pin.close()


def test_leftovers_of_every_kind_go(cache: NodeCache) -> None:
    snapshot = stock(cache, FEW)
    layout, nobody = cache.layout, "00" * 8
    (layout.snapshots / ("a" * 64)).write_bytes(b"a record without a row")
    (layout.snapshots / f".{snapshot}.abcd").write_bytes(b"half a record")
    (layout.pins / ("a" * 64)).touch()
    (layout.writers / nobody).touch()
    draft = layout.trees / f".{snapshot}.abcd.{nobody}"
    (draft / "sub").mkdir(parents=True)
    (draft / "sub" / "x").touch()
    (layout.trees / ("a" * 64)).mkdir()
    (layout.trash / "file").touch()
    (layout.trash / "tree.1" / "sub").mkdir(parents=True)
    sweep(cache)
    assert not orphans(cache)
    assert not (layout.writers / nobody).exists()
    tree = cache.whole_tree(snapshot)
    assert tree is not None
    assert shown(tree) == FEW


def test_what_is_in_use_stays(cache: NodeCache, mounts: Mounts) -> None:
    layout = cache.layout
    writer = layout.writers / ("ab" * 8)
    fd = open_lock_file(writer)
    assert try_lock(fd, exclusive=True)
    draft = layout.trees / f".{'a' * 64}.abcd.{writer.name}"
    draft.mkdir()
    pin = cache.pin("b" * 64)
    mounted = layout.trash / f"{'c' * 64}.1234"
    (mounted / "sub").mkdir(parents=True)
    mounts.roots.add(f"/trash/{mounted.name}")
    sweep(cache)
    assert writer.exists()
    assert draft.exists()
    assert (layout.pins / ("b" * 64)).exists()
    assert (mounted / "sub").exists()
    pin.close()
    os.close(fd)
    mounts.roots.clear()
    sweep(cache)
    assert not orphans(cache)


def test_a_tree_whose_eviction_broke_off_goes_back(cache: NodeCache) -> None:
    snapshot = stock(cache, FEW)
    tree = cache.layout.tree(snapshot)
    inode = tree.stat().st_ino
    tree.rename(cache.layout.trash / f"{snapshot}.abcd")
    sweep(cache)
    assert tree.stat().st_ino == inode
    assert not orphans(cache)


def test_a_grave_that_was_not_closed_is(cache: NodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process died after the commit that evicted, before the file was moved."""
    stock(cache, FEW)
    monkeypatch.setattr("bdnfs.cache.eviction.Evictor._bury_files", lambda *_: None)
    cache.evict(unused_since_s=float("inf"), dry_run=False)
    monkeypatch.undo()
    assert any(name.startswith("blobs/") for name in orphans(cache))
    sweep(cache)
    assert not orphans(cache)
    check_books(cache)


def test_a_window_without_its_daemon_goes(cache: NodeCache, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.unit.cache.stocked import *
cache = open_cache(Path(sys.argv[1]))
snapshot, pin = admit(cache, manifest_of({"w": TWO_CHUNKS}), window=True)
blob = cache.record(snapshot).blobs[0]
assert cache.reserve_window(blob, 4097, evict=False)
write_chunk(cache, blob, TWO_CHUNKS, 1)
print("open", flush=True)
sys.stdin.readline()
"""
    holder = python(code, tmp_path / "cache")
    assert line_of(holder) == "open"
    sweep(cache)
    assert cache.usage().present_bytes == 4097
    kill(holder)
    sweep(cache)
    assert cache.usage().present_bytes == 0
    assert [item.row.window for item in cache.holdings()] == [False]
    check_books(cache)
    assert not orphans(cache)


def test_a_windows_room_is_its_floor_and_its_chunks(opened: Opened) -> None:
    cache = opened(capacity_bytes=17 * MIB)
    snapshot, pin = admit(cache, manifest_of({"w": content("w", 40 * MIB)}), window=True)
    assert cache.usage().charged_bytes == 8 * MIB  # its floor
    blob = cache.record(snapshot).blobs[0]  # type: ignore[union-attr]
    assert cache.window_floor([snapshot]) == blob
    assert cache.reserve_window(blob, 8 * MIB, evict=True)
    assert not cache.reserve_window(blob, 8 * MIB, evict=True)
    pin.close()
    cache.drop_window(snapshot)
    assert cache.usage().charged_bytes == 0
    assert not orphans(cache)


def test_a_whole_snapshot_that_a_window_shows_stays(cache: NodeCache) -> None:
    """A daemon for windows shows what was whole before, too, and lets go of everything as windows."""
    snapshot = stock(cache, FEW)
    cache.drop_window(snapshot)
    tree = cache.whole_tree(snapshot)
    assert tree is not None
    assert shown(tree) == FEW
    check_books(cache)
