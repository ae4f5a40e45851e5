"""A disk that fills up at any point: an error that says so, nothing lost, and room can be made."""

import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from bdnfs.cache.ledger import Ledger
from bdnfs.cache.node import NodeCache
from bdnfs.cache.pins import Pin
from bdnfs.cache.rows import BlobRow, ChunkRow, ChunkState
from bdnfs.core.errors import SpaceError
from bdnfs.core.units import MIB
from bdnfs.manifest.model import Manifest
from tests.unit.cache.stocked import (
    FEW,
    admit,
    check_books,
    content,
    fill,
    manifest_of,
    orphans,
    seal,
    shown,
    stock,
    write_chunk,
)
from tests.unit.cache.test_index import fill_disk

Opened = Callable[..., NodeCache]
Filesystem = Callable[..., Path]
EVER = float("inf")


def use_inodes(place: Path) -> None:
    """Make files until no inode is left."""
    (place / "files").mkdir()
    numbers = itertools.count()
    with suppress(OSError):
        while True:
            (place / "files" / str(next(numbers))).touch()
    assert os.statvfs(place).f_favail == 0


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_hit_and_an_eviction_need_no_space(opened: Opened, filesystem: Filesystem, kind: str) -> None:
    place = filesystem(kind, 96)
    cache = opened(place / "cache")
    first = stock(cache, FEW, "1" * 40)
    second = stock(cache, {"big": content("big", 20 * MIB)}, "2" * 40)
    fill_disk(place)
    cache.close()
    cache = opened(place / "cache")
    pin = cache.pin(first)
    tree = cache.whole_tree(first)
    assert tree is not None
    assert shown(tree) == FEW
    cache.used(first)
    cache.saw_revision("selection", "main", "3" * 40)
    assert cache.evict(unused_since_s=EVER, dry_run=False).freed_bytes == 20 * MIB
    pin.close()
    assert cache.whole_tree(second) is None
    check_books(cache)
    assert not orphans(cache)


def test_the_disk_fills_up_in_a_chunk(opened: Opened, filesystem: Filesystem) -> None:
    place = filesystem("ext4", 96)
    cache = opened(place / "cache")
    files = {"big": content("big", 24 * MIB)}
    snapshot, pin = admit(cache, manifest_of(files))
    record = cache.record(snapshot)
    assert record is not None
    write_chunk(cache, record.blobs[0], files["big"], 1)
    fill_disk(place)
    with pytest.raises(SpaceError, match="what has been fetched is kept"):
        fill(cache, snapshot, files)
    check_books(cache)
    assert cache.usage().present_bytes >= 8 * MIB
    (place / "filler").unlink()
    assert shown(fill(cache, snapshot, files)) == files
    pin.close()


def test_an_admission_evicts_on_a_full_disk(opened: Opened, filesystem: Filesystem) -> None:
    place = filesystem("ext4", 96)
    cache = opened(place / "cache")
    stock(cache, {"big": content("big", 20 * MIB)})
    fill_disk(place)
    with pytest.raises(SpaceError, match="Nothing was fetched or evicted"):
        admit(cache, manifest_of({"huge": content("huge", 30 * MIB)}, "2" * 40))
    assert cache.usage().present_bytes == 20 * MIB
    files = {"next": content("next", 18 * MIB)}
    snapshot, pin = admit(cache, manifest_of(files, "2" * 40))
    assert shown(fill(cache, snapshot, files)) == files
    pin.close()
    check_books(cache)
    assert not orphans(cache)


def test_no_inodes_for_the_tree(opened: Opened, filesystem: Filesystem) -> None:
    place = filesystem("ext4", 64)
    cache = opened(place / "cache")
    snapshot, pin = admit(cache, manifest_of(FEW))
    record = cache.record(snapshot)
    assert record is not None
    for file, blob in zip(record.manifest.files, record.blobs, strict=True):
        if blob:
            write_chunk(cache, blob, FEW[file.path], 0)
            seal(cache, blob, FEW[file.path], file.digest)
    use_inodes(place)
    with pytest.raises(SpaceError, match="inodes"):
        cache.publish_snapshot(snapshot)
    with pytest.raises(SpaceError):
        admit(cache, manifest_of({"x": b"x"}, "2" * 40))
    check_books(cache)
    for path in (place / "files").iterdir():
        path.unlink()
    assert shown(cache.publish_snapshot(snapshot)) == FEW
    pin.close()
    assert not orphans(cache)


def admitted(cache: NodeCache, manifest: Manifest) -> Pin | None:
    try:
        return admit(cache, manifest)[1]
    except SpaceError:
        return None


def test_no_room_for_the_record_or_the_index_at_any_size(opened: Opened, filesystem: Filesystem) -> None:
    """Leave a little more each time: whichever write fails, nothing is half admitted."""
    place = filesystem("ext4", 64)
    cache = opened(place / "cache")
    kept = stock(cache, FEW, keep=True)
    manifest = manifest_of({f"{number:05}": b"%d" % number for number in range(300)}, "2" * 40)
    fill_disk(place)
    filler = place / "filler"
    refusals = 0
    while (pin := admitted(cache, manifest)) is None:
        refusals += 1
        assert refusals < 60
        check_books(cache)
        assert len(cache.holdings()) == 1
        with filler.open("r+b") as file:
            file.truncate(filler.stat().st_size - 8192)
    assert refusals
    pin.close()
    assert cache.whole_tree(kept) is not None
    check_books(cache)
    assert not orphans(cache)


def test_everything_of_a_big_cache_can_be_evicted_on_a_full_disk(
    opened: Opened, filesystem: Filesystem
) -> None:
    """One commit that deletes tens of thousands of rows has the headroom, and no more."""
    place = filesystem("ext4", 96)
    cache = opened(place / "cache")
    count = 20_000
    with cache._index.write() as txn:
        ledger = Ledger(txn)
        for number in range(count):
            blob = content(f"blob {number}", 32)
            name = f"sha256:{blob.hex()}"
            ledger.put_blob(blob, BlobRow(size=1, charged=1, present=1, whole=True, digests=(name,)))
            ledger.put_chunk(blob, 0, ChunkRow(ChunkState.SYNCED, bytes(8), blob))
            ledger.put_alias(name, blob)
    fill_disk(place)
    before = used_bytes(cache)
    assert cache.evict(unused_since_s=EVER, dry_run=False).freed_bytes == count
    assert cache.usage().charged_bytes == 0
    check_books(cache)
    # Part by part: whatever the size of the cache, no more than a part takes.
    assert used_bytes(cache) - before < 3 * MIB


def used_bytes(cache: NodeCache) -> int:
    env = cache._index._env
    assert env is not None
    return (int(env.info()["last_pgno"]) + 1) * int(env.stat()["psize"])
