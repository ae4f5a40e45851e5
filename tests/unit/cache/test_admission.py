"""Room is charged before the first byte: never more than the capacity, never below the reserve."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import SpaceError
from bdnfs.core.units import MIB
from tests.unit.cache.stocked import (
    FEW,
    admit,
    check_books,
    content,
    fill,
    finished,
    line_of,
    manifest_of,
    orphans,
    python,
    shown,
    stock,
)

Opened = Callable[..., NodeCache]


def model(name: str, size: int = 4 * MIB) -> dict[str, bytes]:
    return {"model.bin": content(name, size)}


def state(cache: NodeCache) -> object:
    """Everything that a refusal must leave as it was."""
    with cache.read() as ledger:
        rows = [
            list(ledger.txn.scan(table)) for table in ("meta", "snapshots", "blobs", "aliases", "selections")
        ]
    files = {
        path.relative_to(cache.layout.root): path.lstat().st_ino
        for path in cache.layout.root.rglob("*")
        if path.name not in ("index.lock",)
    }
    return rows, files


def test_all_of_it_is_charged_at_once(cache: NodeCache) -> None:
    _, pin = admit(cache, manifest_of(FEW))
    usage = cache.usage()
    assert (usage.charged_bytes, usage.present_bytes) == (sum(map(len, FEW.values())), 0)
    check_books(cache)
    pin.close()


def test_the_same_bytes_twice_are_charged_and_kept_once(cache: NodeCache) -> None:
    files = {"a.bin": content("a", MIB), "b/a.bin": content("a", MIB), "c": b"", "d": b""}
    snapshot = stock(cache, files)
    assert cache.usage().charged_bytes == MIB
    tree = cache.whole_tree(snapshot)
    assert tree is not None
    assert shown(tree) == files
    assert (tree / "a.bin").samefile(tree / "b/a.bin")
    assert not (tree / "c").samefile(tree / "d")


def test_equal_files_of_two_origins_are_kept_once_when_the_first_is_verified(cache: NodeCache) -> None:
    stock(cache, FEW)
    other = manifest_of(FEW, "2" * 40, origin="hf https://elsewhere.test org/model")
    snapshot, pin = admit(cache, other)
    assert cache.usage().charged_bytes == sum(map(len, FEW.values()))
    assert cache.present_of(other) == other.total_bytes
    assert shown(cache.publish_snapshot(snapshot)) == FEW
    pin.close()


def test_without_digests_nothing_is_shared_between_origins(cache: NodeCache) -> None:
    for number, origin in enumerate(("one", "two")):
        snapshot, pin = admit(cache, manifest_of(FEW, str(number) * 40, origin=origin, digests=False))
        fill(cache, snapshot, FEW)
        pin.close()
    assert cache.usage().present_bytes == 2 * sum(map(len, FEW.values()))


def test_what_cannot_fit_is_refused_with_the_numbers_and_changes_nothing(opened: Opened) -> None:
    cache = opened(capacity_bytes=10 * MIB)
    stock(cache, model("old"))
    pinned = stock(cache, model("held"), "2" * 40, keep=True)
    before = state(cache)
    with pytest.raises(SpaceError) as refusal:
        admit(cache, manifest_of(model("big", 7 * MIB), "3" * 40))
    said = str(refusal.value)
    for number in ("7.0 MiB", "10 MiB", "8.0 MiB"):
        assert number.replace(".0", "") in said.replace(".0", "")
    assert "2" * 12 in said
    assert "1" * 12 not in said
    assert state(cache) == before
    tree = cache.whole_tree(pinned)
    assert tree is not None
    check_books(cache)


def test_too_big_for_an_empty_cache_is_refused(opened: Opened) -> None:
    cache = opened(capacity_bytes=MIB)
    with pytest.raises(SpaceError, match="pinned: nothing"):
        admit(cache, manifest_of(model("big")))
    assert cache.usage().charged_bytes == 0


def test_the_reserve_stays_free(opened: Opened, filesystem: Callable[..., Path]) -> None:
    cache = opened(filesystem("ext4", 128) / "cache", reserve_bytes=30 * MIB)
    room_bytes = cache.usage().disk_free_bytes - 30 * MIB
    with pytest.raises(SpaceError, match="30 MiB of them reserved"):
        admit(cache, manifest_of(model("a", room_bytes + 1)))
    _, pin = admit(cache, manifest_of(model("a", room_bytes - 12 * MIB)))
    # Nothing of it is written yet: what was promised counts.
    with pytest.raises(SpaceError, match="reserved"):
        admit(cache, manifest_of(model("b", 13 * MIB), "2" * 40))
    stock(cache, model("c", 10 * MIB), "3" * 40)
    pin.close()
    assert cache.usage().disk_free_bytes >= 30 * MIB


def test_room_is_not_made_from_what_the_new_snapshot_shares(opened: Opened) -> None:
    """A new revision in a cache with hardly any room: the shared blob must not be evicted for it."""
    shared = content("shared", 6 * MIB)
    cache = opened(capacity_bytes=12 * MIB)
    stock(cache, {"shared.bin": shared, "old.bin": content("old", 4 * MIB)})
    files = {"shared.bin": shared, "new.bin": content("new", 5 * MIB)}
    snapshot, pin = admit(cache, manifest_of(files, "2" * 40))
    check_books(cache)
    assert cache.usage().present_bytes == 6 * MIB
    assert shown(fill(cache, snapshot, files)) == files
    pin.close()
    assert not orphans(cache)


def test_admitting_again_keeps_the_blobs_that_are_being_filled(opened: Opened) -> None:
    """The same bytes are verified from another origin meanwhile: who fills by the old names goes on."""
    cache = opened(capacity_bytes=30 * MIB)
    files = model("m")
    snapshot, pin = admit(cache, manifest_of(files))
    first = cache.record(snapshot)
    other, other_pin = admit(cache, manifest_of(files, "2" * 40, origin="another"))
    fill(cache, other, files)
    again, again_pin = admit(cache, manifest_of(files))
    assert again == snapshot
    assert cache.record(snapshot) == first
    cache.evict(unused_since_s=float("inf"), dry_run=False)
    assert shown(fill(cache, snapshot, files)) == files
    for each in (pin, other_pin, again_pin):
        each.close()


def test_a_whole_snapshot_admitted_again_stays_whole(cache: NodeCache) -> None:
    snapshot = stock(cache, FEW)
    _, pin = admit(cache, manifest_of(FEW))
    assert cache.whole_tree(snapshot) is not None
    pin.close()


def test_a_record_that_was_damaged_is_written_again(cache: NodeCache) -> None:
    snapshot = stock(cache, FEW)
    path = cache.layout.snapshots / snapshot
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert cache.record(snapshot) is None
    assert cache.whole_tree(snapshot) is None
    _, pin = admit(cache, manifest_of(FEW))
    assert cache.whole_tree(snapshot) is not None
    pin.close()


def test_a_file_that_lies_where_a_new_blobs_will_is_not_filled_in_place(cache: NodeCache) -> None:
    """It may be what a mount still shows."""
    manifest = manifest_of(model("m"))
    snapshot, pin = admit(cache, manifest)
    record = cache.record(snapshot)
    assert record is not None
    pin.close()
    cache.evict(unused_since_s=float("inf"), dry_run=False)
    path = cache.layout.blob(record.blobs[0])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"old bytes")
    with path.open("rb") as old:
        assert stock(cache, model("m")) == snapshot
        assert old.read() == b"old bytes"
    tree = cache.whole_tree(snapshot)
    assert tree is not None
    assert shown(tree) == model("m")
    assert not orphans(cache)


ADMIT = """
import sys
from pathlib import Path
from bdnfs.core.errors import SpaceError
from tests.unit.cache.stocked import *
cache = open_cache(Path(sys.argv[1]), capacity_bytes=20 << 20)
print("open", flush=True)
sys.stdin.readline()
pins, refused = [], 0
for number in range(12):
    files = {"model.bin": content(sys.argv[2] + str(number), 3 << 20)}
    try:
        pins.append(admit(cache, manifest_of(files, sys.argv[2] * 40))[1])
    except SpaceError:
        refused += 1
    check_books(cache)
print(len(pins), flush=True)
sys.stdin.readline()
"""


def test_two_processes_that_admit_at_once_never_pass_the_capacity(tmp_path: Path, opened: Opened) -> None:
    cache = opened(capacity_bytes=20 * MIB)
    stock(cache, model("old", 8 * MIB))
    processes = [python(ADMIT, tmp_path / "cache", name) for name in ("a", "b")]
    for process in processes:
        assert line_of(process) == "open"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    admitted = [int(line_of(process)) for process in processes]
    assert sum(admitted) == 6
    assert cache.usage().charged_bytes == 18 * MIB
    check_books(cache)
    finished(processes)
    # Their pins went with them; their charge goes as soon as somebody needs it.
    _, pin = admit(cache, manifest_of(model("next", 19 * MIB), "c" * 40))
    check_books(cache)
    pin.close()


def test_what_was_evicted_and_is_still_open_does_not_break_the_reserve(
    opened: Opened, filesystem: Callable[[str, int], Path]
) -> None:
    """Its space is not free yet, so it is no room."""
    cache = opened(filesystem("tmpfs", 80), reserve_bytes=8 * MIB)
    snapshot = stock(cache, model("old", 24 * MIB))
    record = cache.record(snapshot)
    assert record is not None
    new = manifest_of(model("new", 24 * MIB), "2" * 40)
    with cache.layout.blob(record.blobs[0]).open("rb"):
        with pytest.raises(SpaceError):
            admit(cache, new)
        assert cache.usage().charged_bytes == 0
    _, pin = admit(cache, new)
    pin.close()
    check_books(cache)
