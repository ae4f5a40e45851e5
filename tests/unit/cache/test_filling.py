"""Blobs and chunks: claimed once, trusted only where that is deserved, never zeros for bytes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.cache.blobs import Blob
from bdnfs.cache.node import ChunkRef, NodeCache, Seal
from bdnfs.cache.rows import ChunkRow, ChunkState
from bdnfs.core.errors import CacheError, SpaceError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.units import MIB
from tests.unit.cache.stocked import (
    FEW,
    TWO_CHUNKS,
    admit,
    check_books,
    content,
    fill,
    kill,
    line_of,
    manifest_of,
    python,
    seal,
    shown,
    stock,
    write_chunk,
)

Opened = Callable[..., NodeCache]
FILES = {"two.bin": TWO_CHUNKS}


def admitted(cache: NodeCache) -> tuple[str, bytes]:
    snapshot, _ = admit(cache, manifest_of(FILES))
    record = cache.record(snapshot)
    assert record is not None
    return snapshot, record.blobs[0]


def state_of(cache: NodeCache, blob: bytes, index: int) -> ChunkState | None:
    row = cache.chunk(ChunkRef(blob, index))
    return row.state if row else None


WRITE_AND_HOLD = """
import sys
from pathlib import Path
from tests.unit.cache.stocked import *
cache = open_cache(Path(sys.argv[1]))
blob_id = bytes.fromhex(sys.argv[2])
write_chunk(cache, blob_id, TWO_CHUNKS, 0)
blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
print(blob.claim(1), blob.claim_seal(), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_another_process_holds_its_chunk_until_it_ends(cache: NodeCache, stopped: bool) -> None:
    _, blob_id = admitted(cache)
    holder = python(WRITE_AND_HOLD, cache.layout.root, blob_id.hex())
    assert line_of(holder) == "True True"
    if stopped:
        holder.send_signal(signal.SIGSTOP)
    blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
    assert list(blob.present) == [1, 0]
    assert blob.claim(0)
    assert not blob.claim(1)
    assert not blob.claim_seal()
    kill(holder)
    assert blob.claim(1)
    assert blob.claim_seal()
    blob.close()
    # Its writer is dead: the chunk is there, but not to be trusted unseen.
    blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
    assert list(blob.present) == [0, 0]
    blob.close()


def left_by_a_dead_writer(cache: NodeCache) -> tuple[bytes, ChunkRow]:
    _, blob_id = admitted(cache)
    holder = python(WRITE_AND_HOLD, cache.layout.root, blob_id.hex())
    assert line_of(holder) == "True True"
    kill(holder)
    row = cache.chunk(ChunkRef(blob_id, 0))
    assert row is not None
    assert row.state is ChunkState.FILLED
    assert not cache.is_alive(row.writer)
    return blob_id, row


def test_what_a_dead_writer_left_is_adopted_if_the_disk_says_the_same(cache: NodeCache) -> None:
    blob_id, row = left_by_a_dead_writer(cache)
    blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
    assert cache.adopt(blob, 0, row, memoryview(bytearray(CHUNK_BYTES)))
    blob.close()
    assert state_of(cache, blob_id, 0) is ChunkState.SYNCED
    blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
    assert list(blob.present) == [1, 0]
    blob.close()
    check_books(cache)


def test_what_a_dead_writer_left_is_forgotten_if_the_disk_says_otherwise(cache: NodeCache) -> None:
    blob_id, row = left_by_a_dead_writer(cache)
    with cache.layout.blob(blob_id).open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0")
    blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
    assert not cache.adopt(blob, 0, row, memoryview(bytearray(CHUNK_BYTES)))
    blob.close()
    assert state_of(cache, blob_id, 0) is None
    assert cache.usage().present_bytes == 0
    check_books(cache)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("damage", ["gone", "shorter", "longer", "empty", "replaced"])
def test_a_file_that_is_not_what_its_rows_say_has_lost_its_chunks(
    cache: NodeCache, damage: str, whole: bool
) -> None:
    """Never zeros for bytes: a missing file made again would be all of them."""
    snapshot, blob_id = admitted(cache)
    write_chunk(cache, blob_id, TWO_CHUNKS, 0)
    if whole:
        fill(cache, snapshot, FILES)
    path = cache.layout.blob(blob_id)
    os.chmod(path, 0o600)
    if damage == "gone":
        path.unlink()
    elif damage == "replaced":
        path.unlink()
        path.write_bytes(bytes(10))
    else:
        os.truncate(path, {"shorter": 4096, "longer": len(TWO_CHUNKS) + 1, "empty": 0}[damage])
    blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
    assert list(blob.present) == [0, 0]
    assert not cache.is_whole(blob_id)
    blob.close()
    check_books(cache)
    assert shown(fill(cache, snapshot, FILES)) == FILES


def test_a_blob_without_a_row_is_not_made(cache: NodeCache) -> None:
    with pytest.raises(CacheError, match="evicted"):
        cache.open_blob(bytes(32), 100)
    assert not cache.layout.blob(bytes(32)).exists()


def test_a_claim_on_a_file_that_was_replaced_is_refused(cache: NodeCache) -> None:
    _, blob_id = admitted(cache)
    blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
    path = cache.layout.blob(blob_id)
    path.rename(path.with_name("aside"))
    with pytest.raises(CacheError, match="evicted"):
        blob.claim(0)
    path.write_bytes(b"")
    with pytest.raises(CacheError, match="evicted"):
        blob.claim(0)
    blob.close()


def test_what_was_whole_when_it_was_opened_cannot_be_filled(cache: NodeCache) -> None:
    snapshot, blob_id = admitted(cache)
    fill(cache, snapshot, FILES)
    blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
    assert blob.complete
    for claim in (lambda: blob.claim(0), blob.claim_seal):
        with pytest.raises(CacheError, match="damaged"):
            claim()
    blob.close()


def test_a_blob_stays_open_for_who_still_has_it(cache: NodeCache) -> None:
    _, blob_id = admitted(cache)
    write_chunk(cache, blob_id, TWO_CHUNKS, 1)
    blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
    fd, held = blob.fd, blob
    del blob
    into = bytearray(10)
    held.read(CHUNK_BYTES, memoryview(into))
    assert bytes(into) == TWO_CHUNKS[CHUNK_BYTES : CHUNK_BYTES + 10]
    del held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_committing_to_a_blob_that_was_evicted_fails_for_that_one_alone(cache: NodeCache) -> None:
    _, blob_id = admitted(cache)
    row = ChunkRow(ChunkState.FILLED, cache.writer, bytes(32))
    lost = cache.commit([(ChunkRef(bytes(32), 0), row), (ChunkRef(blob_id, 0), row)])
    assert lost == {bytes(32)}
    assert state_of(cache, blob_id, 0) is ChunkState.FILLED


def test_a_sync_does_not_bring_back_what_was_forgotten_meanwhile(cache: NodeCache) -> None:
    _, blob_id = admitted(cache)
    write_chunk(cache, blob_id, TWO_CHUNKS, 0)
    write_chunk(cache, blob_id, TWO_CHUNKS, 1)
    rows = cache.unsynced(blob_id)
    cache.forget(blob_id, [0])
    cache.mark_synced(blob_id, rows)
    assert state_of(cache, blob_id, 0) is None
    assert state_of(cache, blob_id, 1) is ChunkState.SYNCED
    check_books(cache)


def test_a_failed_sync_drops_what_is_not_synced_and_keeps_what_is(cache: NodeCache) -> None:
    _, blob_id = admitted(cache)
    write_chunk(cache, blob_id, TWO_CHUNKS, 1)
    cache.mark_synced(blob_id, cache.unsynced(blob_id))
    write_chunk(cache, blob_id, TWO_CHUNKS, 0)
    cache.forget_unsynced(blob_id)
    assert [state_of(cache, blob_id, index) for index in (0, 1)] == [None, ChunkState.SYNCED]
    check_books(cache)


def test_a_late_commit_does_not_take_back_that_a_chunk_is_synced(cache: NodeCache) -> None:
    _, blob_id = admitted(cache)
    write_chunk(cache, blob_id, TWO_CHUNKS, 0)
    row = cache.unsynced(blob_id)[0]
    cache.mark_synced(blob_id, {0: row})
    cache.commit([(ChunkRef(blob_id, 0), row)])
    assert state_of(cache, blob_id, 0) is ChunkState.SYNCED


def test_a_blob_is_not_published_without_all_its_chunks(cache: NodeCache) -> None:
    _, blob_id = admitted(cache)
    write_chunk(cache, blob_id, TWO_CHUNKS, 0)
    blob = cache.open_blob(blob_id, len(TWO_CHUNKS))
    inode, mtime_ns = blob.seal()
    assert cache.publish_blobs([Seal(blob_id, None, inode, mtime_ns)]) == {blob_id}
    assert not cache.is_whole(blob_id)
    write_chunk(cache, blob_id, TWO_CHUNKS, 1)
    assert cache.publish_blobs([Seal(blob_id, None, inode + 1, mtime_ns)]) == {blob_id}
    assert not cache.publish_blobs([Seal(blob_id, None, *blob.seal())])
    assert cache.is_whole(blob_id)
    blob.close()


def test_a_snapshot_is_not_published_without_all_its_blobs(cache: NodeCache) -> None:
    snapshot, pin = admit(cache, manifest_of(FEW))
    with pytest.raises(CacheError):
        cache.publish_snapshot(snapshot)
    record = cache.record(snapshot)
    assert record is not None
    for file, blob_id in zip(record.manifest.files, record.blobs, strict=True):
        if blob_id:
            write_chunk(cache, blob_id, FEW[file.path], 0)
    with pytest.raises(CacheError, match="changed while it was being finished"):
        cache.publish_snapshot(snapshot)
    assert cache.whole_tree(snapshot) is None
    for file, blob_id in zip(record.manifest.files, record.blobs, strict=True):
        if blob_id:
            seal(cache, blob_id, FEW[file.path], None)
    assert shown(cache.publish_snapshot(snapshot)) == FEW
    pin.close()


def test_a_file_bigger_than_the_filesystem_allows_is_a_space_error(cache: NodeCache) -> None:
    with pytest.raises(SpaceError, match="can't hold a file of this size"):
        Blob(cache.layout.root / "blobs" / "big", bytes(32), 1 << 46, writable=True)


def test_verifying_finds_damage_and_forgets_it_without_touching_the_old_file(cache: NodeCache) -> None:
    snapshot = stock(cache, FEW)
    record = cache.record(snapshot)
    tree = cache.whole_tree(snapshot)
    assert record is not None
    assert tree is not None
    blob_id = record.blobs[[file.path for file in record.manifest.files].index("model.bin")]
    assert all(cache.verify_blob(blob) is None for blob, _ in cache.blobs())
    with (tree / "model.bin").open("r+b") as file:
        file.write(b"damage")
    with (tree / "model.bin").open("rb") as mounted:
        assert "is not what was written" in str(cache.verify_blob(blob_id))
        assert mounted.read(6) == b"damage"
        assert cache.whole_tree(snapshot) is None
        _, pin = admit(cache, manifest_of(FEW))
        assert shown(fill(cache, snapshot, FEW)) == FEW
        assert mounted.seek(0) == 0
        assert mounted.read(6) == b"damage"
        pin.close()
    check_books(cache)


def test_damage_to_a_shared_blob_is_not_shown_by_the_other_snapshot(cache: NodeCache) -> None:
    """Its tree has the old inode under the right name, of the right size and time."""
    shared = {"shared.bin": content("shared", MIB)}
    first = stock(cache, {**shared, "a": b"a"}, "a" * 40)
    second = stock(cache, {**shared, "b": b"b"}, "b" * 40)
    blob_id = next(blob for blob, row in cache.blobs() if row.size == MIB)
    path = cache.layout.blob(blob_id)
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"damage")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.verify_blob(blob_id) is not None
    _, pin = admit(cache, manifest_of({**shared, "a": b"a"}, "a" * 40))
    assert shown(fill(cache, first, {**shared, "a": b"a"})) == {**shared, "a": b"a"}
    tree = cache.whole_tree(second)
    assert tree is not None
    assert shown(tree) == {**shared, "b": b"b"}
    pin.close()


def test_a_second_writer_is_not_lost_to_threads(cache: NodeCache) -> None:
    import threading

    names: set[bytes] = set()
    threads = [threading.Thread(target=lambda: names.add(cache.writer)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 1
    assert len(list(Path(cache.layout.writers).iterdir())) == 1
