"""An index that is older than its blobs: put back from a backup, it trusts what is not there any more."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.cache.index import BrokenIndexError
from bdnfs.cache.node import NodeCache
from bdnfs.cache.rows import ChunkState
from tests.unit.cache.stocked import (
    FEW,
    TWO_CHUNKS,
    admit,
    check_books,
    fill,
    manifest_of,
    open_cache,
    shown,
    stock,
    write_chunk,
)

FILES = {"two.bin": TWO_CHUNKS}
# Without upstream's digest nothing but the index vouches for the bytes.
MANIFEST = manifest_of(FILES, "2" * 40, digests=False)


def bring(cache: NodeCache, index: int) -> bytes:
    """Admit the snapshot, bring one of its two chunks and sync it; return the blob's id."""
    snapshot, pin = admit(cache, MANIFEST)
    record = cache.record(snapshot)
    assert record is not None
    blob = record.blobs[0]
    write_chunk(cache, blob, TWO_CHUNKS, index)
    cache.mark_synced(blob, cache.unsynced(blob))
    pin.close()
    return blob


def put_back(backup: Path, index: Path, *, in_place: bool) -> None:
    if not in_place:
        index.unlink()
    shutil.copyfile(backup, index)


def stale(directory: Path, backup: Path) -> bytes:
    """Leave a backup that knows the first chunk, of a cache that has only the second by now."""
    cache = open_cache(directory)
    stock(cache, FEW)
    bring(cache, 0)
    cache.close()
    shutil.copyfile(directory / "index.lmdb", backup)
    cache = open_cache(directory)
    cache.evict(unused_since_s=float("inf"), dry_run=False)
    blob = bring(cache, 1)
    cache.close()
    return blob


def trusted_chunks_are_right(cache: NodeCache, blob: bytes) -> None:
    with cache.read() as ledger:
        chunks = dict(ledger.chunks(blob))
    opened = cache.open_blob(blob, len(TWO_CHUNKS))
    for index, row in chunks.items():
        if row.state is ChunkState.SYNCED and opened.present[index]:
            assert opened.digest(index, memoryview(bytearray(8 << 20))) == row.digest
    opened.close()


@pytest.mark.parametrize("in_place", [True, False], ids=["in-place", "replaced"])
@pytest.mark.parametrize("rebuilt", [False, True], ids=["older", "before-a-rebuild"])
def test_an_older_copy_is_not_believed(tmp_path: Path, *, in_place: bool, rebuilt: bool) -> None:
    directory = tmp_path / "cache"
    blob = stale(directory, tmp_path / "backup")
    if rebuilt:  # and so younger by its own count
        (directory / "index.broken").touch()
        cache = open_cache(directory)
        bring(cache, 1)
        cache.close()
    put_back(tmp_path / "backup", directory / "index.lmdb", in_place=in_place)
    cache = open_cache(directory)
    snapshot, pin = admit(cache, MANIFEST)
    trusted_chunks_are_right(cache, blob)
    assert shown(fill(cache, snapshot, FILES)) == FILES
    pin.close()
    check_books(cache)
    cache.close()


def test_an_older_copy_put_back_under_us_is_an_error(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    blob = stale(directory, tmp_path / "backup")
    cache = open_cache(directory)
    put_back(tmp_path / "backup", directory / "index.lmdb", in_place=False)
    with pytest.raises(BrokenIndexError, match="older copy"):
        cache.blob_row(blob)
    cache.close()
    cache = open_cache(directory)
    _, pin = admit(cache, MANIFEST)
    trusted_chunks_are_right(cache, blob)
    pin.close()
    cache.close()


def test_the_index_may_be_copied_and_the_lock_file_lost(
    tmp_path: Path, opened: Callable[..., NodeCache]
) -> None:
    """What is not older is believed: nothing is rebuilt without a reason."""
    cache = open_cache(tmp_path / "cache")
    stock(cache, {"x": b"x"})
    cache.close()
    inode = (tmp_path / "cache" / "index.lmdb").stat().st_ino
    os.unlink(tmp_path / "cache" / "index.lock")
    cache = opened()
    assert cache.usage().present_bytes == 1
    assert (tmp_path / "cache" / "index.lmdb").stat().st_ino == inode
