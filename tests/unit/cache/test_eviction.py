"""Who goes and who stays: last use, pins of every kind, shared blobs, and what a broken transaction undoes."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from bdnfs.cache.eviction import Holding, choose
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.node import NodeCache
from bdnfs.cache.rows import BlobRow, SnapshotRow
from bdnfs.core.errors import SpaceError
from bdnfs.core.steps import on_step
from bdnfs.core.units import MIB
from bdnfs.fs.mounts import mount_table, namespaces
from tests.unit.cache.stocked import (
    FEW,
    Mounts,
    admit,
    check_books,
    content,
    disk_bytes,
    fill,
    is_root,
    kill,
    line_of,
    manifest_of,
    open_cache,
    orphans,
    python,
    shown,
    stock,
    until,
    write_chunk,
)

Opened = Callable[..., NodeCache]
EVER = float("inf")


def model(name: str, size: int = 4 * MIB) -> dict[str, bytes]:
    return {"model.bin": content(name, size)}


def stocked(cache: NodeCache, *names: str) -> list[str]:
    """Stock one model each, in the order of their use."""
    ids = [stock(cache, model(name), name[0] * 40) for name in names]
    for number, snapshot in enumerate(ids):
        set_used(cache, snapshot, 1000.0 + number)
    return ids


def set_used(cache: NodeCache, snapshot: str, used_s: float) -> None:
    with cache._index.write() as txn:
        ledger = Ledger(txn)
        row = ledger.snapshot(snapshot)
        assert row is not None
        ledger.put_snapshot(snapshot, msgspec.structs.replace(row, used_s=used_s))


def evicted(cache: NodeCache) -> bool:
    """Evict what may go; return whether everything did."""
    cache.evict(unused_since_s=EVER, dry_run=False)
    return not cache.usage().charged_bytes


def here(cache: NodeCache, ids: list[str]) -> list[bool]:
    return [cache.whole_tree(snapshot) is not None for snapshot in ids]


def test_the_least_recently_used_go_and_no_more_than_needed(opened: Opened) -> None:
    cache = opened(capacity_bytes=14 * MIB)
    ids = stocked(cache, "a", "b", "c")
    cache.used(ids[0])
    _, pin = admit(cache, manifest_of(model("d", 5 * MIB), "d" * 40))
    assert here(cache, ids) == [True, False, True]
    check_books(cache)
    assert not orphans(cache)
    pin.close()


def test_what_is_evicted_is_gone_from_the_disk(opened: Opened) -> None:
    cache = opened()
    stocked(cache, "a", "b")
    assert cache.evict(unused_since_s=1000.5, dry_run=True).freed_bytes == 4 * MIB
    assert disk_bytes(cache.layout.blobs) == 8 * MIB
    eviction = cache.evict(unused_since_s=1000.5, dry_run=False)
    assert eviction.freed_bytes == 4 * MIB
    assert [row.revision for row in eviction.snapshots] == ["a" * 40]
    assert disk_bytes(cache.layout.blobs) == 4 * MIB
    cache.evict(unused_since_s=EVER, dry_run=False)
    assert disk_bytes(cache.layout.blobs) == 0
    assert not orphans(cache)
    assert cache.usage().charged_bytes == 0


def test_a_big_snapshot_loses_only_some_of_its_blobs_and_is_whole_no_more(opened: Opened) -> None:
    cache = opened(capacity_bytes=13 * MIB)
    files = {f"{number}.bin": content(f"part {number}", 2 * MIB) for number in range(6)}
    snapshot = stock(cache, files)
    _, pin = admit(cache, manifest_of(model("new", 3 * MIB), "2" * 40))
    assert cache.usage().present_bytes == 10 * MIB
    assert cache.whole_tree(snapshot) is None
    assert not (cache.layout.tree(snapshot)).exists()
    pin.close()
    stock(cache, {path: data for path, data in files.items() if path != "5.bin"}, "3" * 40)
    check_books(cache)


def test_a_blob_goes_with_the_last_snapshot_that_names_it(opened: Opened) -> None:
    cache = opened()
    shared = content("shared", 4 * MIB)
    old = stock(cache, {"shared.bin": shared, "old.bin": content("old", MIB)}, "a" * 40)
    new = stock(cache, {"shared.bin": shared, "new.bin": content("new", MIB)}, "b" * 40)
    set_used(cache, old, 1.0)
    assert cache.evict(unused_since_s=2.0, dry_run=True).freed_bytes == MIB
    assert cache.evict(unused_since_s=2.0, dry_run=False).freed_bytes == MIB
    assert here(cache, [old, new]) == [False, True]
    assert disk_bytes(cache.layout.root / "blobs") == 5 * MIB
    check_books(cache)


def test_a_pin_of_another_process_forbids_and_is_gone_with_it(opened: Opened, tmp_path: Path) -> None:
    cache = opened(capacity_bytes=8 * MIB)
    ids = stocked(cache, "a", "b")
    code = """
import sys
from pathlib import Path
from tests.unit.cache.stocked import *
cache = open_cache(Path(sys.argv[1]))
pins = [cache.pin(name) for name in sys.argv[2:]]
print("pinned", flush=True)
sys.stdin.readline()
"""
    holder = python(code, tmp_path / "cache", *ids)
    assert line_of(holder) == "pinned"
    with pytest.raises(SpaceError, match=rf"in use by python.* \(pid {holder.pid}\)"):
        admit(cache, manifest_of(model("d"), "d" * 40))
    assert cache.evict(unused_since_s=EVER, dry_run=False).freed_bytes == 0
    assert here(cache, ids) == [True, True]
    kill(holder)
    _, pin = admit(cache, manifest_of(model("d"), "d" * 40))
    pin.close()
    check_books(cache)


def test_a_date_pins_until_it_is_past(opened: Opened) -> None:
    cache = opened()
    ids = stocked(cache, "a", "b")
    cache.pin_until(ids[0], time.time() + 3600)
    assert [bool(item.pinned) for item in cache.holdings()] == [True, False]
    cache.evict(unused_since_s=EVER, dry_run=False)
    assert here(cache, ids) == [True, False]
    cache.pin_until(ids[0], time.time() - 1)
    cache.evict(unused_since_s=EVER, dry_run=False)
    assert here(cache, ids) == [False, False]


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Return a function that binds a tree, for real; all are gone with the test."""
    if not is_root:
        pytest.skip("binding needs root")

    def bind(tree: Path) -> Path:
        place = tmp_path / "mount"
        place.mkdir()
        subprocess.run(["mount", "--bind", str(tree), str(place)], check=True, capture_output=True)
        return place

    yield bind
    while mine := [mount for mount in mount_table() if mount.mountpoint.startswith(f"{tmp_path}/")]:
        subprocess.run(["umount", "-l", mine[-1].mountpoint], check=True, capture_output=True)


def test_what_is_mounted_stays(tmp_path: Path, bound: Callable[[Path], Path]) -> None:
    cache = open_cache(tmp_path / "cache", namespaces)
    ids = stocked(cache, "a", "b")
    tree = cache.whole_tree(ids[0])
    assert tree is not None
    place = bound(tree)
    assert [item.pinned for item in cache.holdings()] == ["mounted", None]
    cache.evict(unused_since_s=EVER, dry_run=False)
    assert shown(place) == model("a")
    assert here(cache, ids) == [True, False]
    cache.close()


def test_what_another_mount_namespace_holds_stays(tmp_path: Path) -> None:
    if not is_root:
        pytest.skip("a mount namespace needs root")
    cache = open_cache(tmp_path / "cache", namespaces)
    ids = stocked(cache, "a")
    tree = cache.whole_tree(ids[0])
    place = tmp_path / "mount"
    place.mkdir()
    script = f"mount --bind {tree} {place} && echo bound && read line && cat {place}/model.bin | wc -c"
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert line_of(holder) == "bound"
    cache.evict(unused_since_s=EVER, dry_run=False)
    assert holder.communicate("\n", timeout=20)[0].strip() == str(4 * MIB)
    until(lambda: evicted(cache), "the namespace to be gone")
    assert here(cache, ids) == [False]
    cache.close()


def test_a_tree_that_is_mended_while_it_is_mounted_stays_for_its_mount(
    tmp_path: Path, bound: Callable[[Path], Path]
) -> None:
    """The tree that was touched goes to the trash, but not what its mount shows."""
    cache = open_cache(tmp_path / "cache", namespaces)
    snapshot = stock(cache, FEW)
    tree = cache.whole_tree(snapshot)
    assert tree is not None
    place = bound(tree)
    (tree / "config.json").unlink()
    mended = cache.whole_tree(snapshot)
    assert mended is not None
    assert shown(mended) == FEW
    _, pin = admit(cache, manifest_of(model("b"), "b" * 40))
    assert shown(place) == {path: data for path, data in FEW.items() if path != "config.json"}
    pin.close()
    subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)
    until(lambda: evicted(cache) and not orphans(cache), "the mount to be gone from every namespace")
    cache.close()


class Late(Mounts):
    """A table in which the tree of one snapshot appears only once it has been renamed to the trash."""

    wanted = ""

    def has_root(self, suffix: str) -> bool:
        _, place, name = suffix.split("/")
        return place == "trash" and name.startswith(self.wanted) and bool(self.wanted)


def test_a_mount_that_comes_while_its_tree_goes_is_found_and_another_goes(tmp_path: Path) -> None:
    mounts = Late()
    cache = open_cache(tmp_path / "cache", mounts)
    ids = stocked(cache, "a", "b")
    mounts.wanted = ids[0]
    cache.evict(unused_since_s=EVER, dry_run=False)
    assert here(cache, ids) == [True, False]
    check_books(cache)
    cache.close()


def test_a_table_that_cannot_be_read_counts_as_holding_everything(opened: Opened, mounts: Mounts) -> None:
    cache = opened()
    ids = stocked(cache, "a", "b")
    mounts.complete = False
    assert cache.evict(unused_since_s=EVER, dry_run=False).freed_bytes == 0
    assert here(cache, ids) == [True, True]


def test_a_transaction_that_breaks_puts_the_trees_back(opened: Opened) -> None:
    cache = opened(capacity_bytes=8 * MIB)
    ids = stocked(cache, "a", "b")
    inodes = [cache.layout.tree(snapshot).stat().st_ino for snapshot in ids]
    seen: list[str] = []

    def fail(step: str) -> None:
        seen.append(step)
        if step == "index:committing":
            raise ZeroDivisionError

    on_step(fail)
    with pytest.raises(ZeroDivisionError):
        admit(cache, manifest_of(model("d", 8 * MIB), "d" * 40))
    on_step(None)
    assert seen == ["evict:tree-renamed", "index:committing"]
    assert [cache.layout.tree(snapshot).stat().st_ino for snapshot in ids] == inodes
    assert here(cache, ids) == [True, True]
    assert not orphans(cache)
    check_books(cache)


def test_a_pinned_snapshot_whose_record_is_lost_forbids_all(opened: Opened) -> None:
    """Nobody can tell any more which blobs it uses."""
    cache = opened()
    ids = stocked(cache, "a", "b")
    with (cache.layout.snapshots / ids[0]).open("r+b") as file:
        file.write(b"xx")
    pin = cache.pin(ids[0])
    assert cache.evict(unused_since_s=EVER, dry_run=False).freed_bytes == 0
    pin.close()
    cache.evict(unused_since_s=EVER, dry_run=False)
    assert cache.usage().charged_bytes == 0
    assert not orphans(cache)


def test_a_date_does_not_pin_what_has_no_record(opened: Opened) -> None:
    cache = opened()
    ids = stocked(cache, "a")
    cache.pin_until(ids[0], time.time() + 3600)
    (cache.layout.snapshots / ids[0]).unlink()
    cache.evict(unused_since_s=EVER, dry_run=False)
    assert cache.usage().charged_bytes == 0


def test_the_charge_for_what_nobody_fetches_any_more_goes_first(opened: Opened) -> None:
    cache = opened(capacity_bytes=20 * MIB)
    ids = stocked(cache, "a")
    files = {"big.bin": content("big", 12 * MIB)}
    snapshot, pin = admit(cache, manifest_of(files, "b" * 40))
    record = cache.record(snapshot)
    assert record is not None
    write_chunk(cache, record.blobs[0], files["big.bin"], 1)
    pin.close()
    _, pin = admit(cache, manifest_of(model("c", 11 * MIB), "c" * 40))
    assert here(cache, ids) == [True]
    with cache.read() as ledger:
        row = ledger.blob(record.blobs[0])
    assert row is not None
    assert (row.charged, row.present) == (4 * MIB, 4 * MIB)
    check_books(cache)
    pin.close()


def test_more_snapshots_than_descriptors(opened: Opened) -> None:
    import resource

    cache = opened()
    for number in range(80):
        stock(cache, {"x": b"%d" % number}, f"{number:040}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        assert len(cache.holdings()) == 80
        cache.evict(unused_since_s=EVER, dry_run=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not orphans(cache)


def row(size: int, *, present: int | None = None) -> BlobRow:
    return BlobRow(size=size, charged=size, present=size if present is None else present)


def holding(name: str, blobs: set[bytes], *, pinned: str | None = None, window: bool = False) -> Holding:
    snapshot = SnapshotRow("hf://o/m", name, 1, 1, True, 0.0, 0.0, window=window)
    return Holding(name, snapshot, frozenset(blobs), pinned)


def test_choosing_takes_what_nobody_names_then_dead_windows_then_the_oldest() -> None:
    rows = {b"orphan": row(1), b"old": row(10), b"new": row(100), b"window": row(1000)}
    holdings = [holding("old", {b"old"}), holding("new", {b"new"}), holding("w", {b"window"}, window=True)]

    def chosen(need: int) -> tuple[set[bytes], list[str]]:
        choice = choose(rows, holdings, frozenset(), lambda freed: freed >= need)
        return set(choice.blobs), [item.snapshot_id for item, _ in choice.removals]

    assert chosen(0) == (set(), [])
    assert chosen(1) == ({b"orphan"}, [])
    assert chosen(2) == ({b"orphan", b"window"}, ["w"])
    assert chosen(1002) == ({b"orphan", b"window", b"old"}, ["w", "old"])
    assert chosen(1111) == (set(rows), ["w", "old", "new"])


def test_choosing_never_takes_what_is_wanted_or_pinned() -> None:
    rows = {b"a": row(1), b"b": row(2), b"c": row(4), b"d": row(8)}
    holdings = [holding("one", {b"a", b"b"}, pinned="mounted"), holding("two", {b"b", b"c"})]
    choice = choose(rows, holdings, frozenset({b"d"}), lambda freed: False)
    assert set(choice.blobs) == {b"c"}
    assert choice.freed_bytes == 4


def test_choosing_a_part_takes_no_more_than_that() -> None:
    rows = {b"%02d" % number: row(1) for number in range(20)}
    holdings = [holding("old", set(list(rows)[5:15])), holding("new", set(list(rows)[15:]))]
    for most in (3, 7, 15, 18, 30):
        choice = choose(rows, holdings, frozenset(), lambda freed: False, most=most)
        assert len(choice.blobs) == min(most, 20)
    choice = choose(rows, holdings, frozenset(), lambda freed: False, most=7)
    assert [(item.snapshot_id, left) for item, left in choice.removals] == [("old", True)]


def test_more_than_goes_at_once_goes_in_parts(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdnfs.cache.eviction.BLOBS_AT_ONCE", 7)
    cache = opened(capacity_bytes=40)
    old = {str(number): b"%02d" % number for number in range(20)}
    stock(cache, old)
    files = {"new": content("new", 31)}
    snapshot, pin = admit(cache, manifest_of(files, "2" * 40))
    assert cache.usage().present_bytes == 8
    check_books(cache)
    assert shown(fill(cache, snapshot, files)) == files
    pin.close()
    assert cache.evict(unused_since_s=EVER, dry_run=False).freed_bytes == 39
    check_books(cache)
    assert not orphans(cache)
