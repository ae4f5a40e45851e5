"""Files that the node has already: taken into the cache by their content, with no upstream asked.

What is taken in is named by a snapshot of its own, `import:<source>` at its revision, which nobody mounts:
it keeps the blobs from being the first to go, and a rebuilt index finds them by it. Who mounts the source
itself asks upstream for the listing alone, and finds each file by its digest (`bdnfs.cache.admission`).
"""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import msgspec

from bdnfs.cache.admission import blob_for
from bdnfs.cache.drafts import Sealed, drafts_directory
from bdnfs.cache.filling import aliases
from bdnfs.cache.index import Index
from bdnfs.cache.known import rows_of
from bdnfs.cache.layout import Layout, check_directory, delete
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.records import snapshot_id, write_record
from bdnfs.cache.room import Room
from bdnfs.cache.rows import BlobRow, ChunkRow, ChunkState, Record, SnapshotRow
from bdnfs.cache.storage import storage_error
from bdnfs.cache.sweep import Sweep
from bdnfs.cache.writers import Writers
from bdnfs.core.steps import reach
from bdnfs.manifest.model import Manifest

# In the place of an origin: such blobs are named by their content alone, and no origin fills them.
ORIGIN = "import"


class Adopting:
    """Takes files in. The caller holds the snapshot's pin from before `enter` to the end."""

    def __init__(self, layout: Layout, index: Index, room: Room, sweep: Sweep, writers: Writers) -> None:
        self._layout = layout
        self._index = index
        self._room = room
        self._sweep = sweep
        self._writers = writers

    def drafts(self) -> AbstractContextManager[Path]:
        """Return a directory for drafts, which goes with what is left in it."""
        return drafts_directory(self._layout, self._writers)

    def enter(self, manifest: Manifest) -> Record:
        """Remember the snapshot, and which blob each of its files is or will be; nothing is charged yet."""
        snapshot = snapshot_id(manifest)
        with self._index.write() as txn:
            ledger = Ledger(txn)
            dead = self._sweep.sweep(ledger)
            blobs = tuple(blob_for(ledger, manifest.origin, file, manifest.tenant) for file in manifest.files)
            record = Record(manifest, blobs, selection=manifest.source)
            known = ledger.snapshot(snapshot)
            write_record(self._layout, snapshot, record)
            if known is None:
                txn.on_abort(partial((self._layout.snapshots / snapshot).unlink, missing_ok=True))
            for file, blob in zip(manifest.files, blobs, strict=True):
                if blob and ledger.blob(blob) is None:
                    grave = self._layout.bury(self._layout.blob(blob))
                    dead += [grave] if grave else []
                    ledger.put_blob(blob, BlobRow(size=file.size, charged=0))
            ledger.put_snapshot(snapshot, _row(manifest, known))
        reach("import:entered")
        delete(dead)
        return record

    def charge(self, record: Record, sizes: Mapping[bytes, int], disk_bytes: int) -> None:
        """Make room for these blobs; disk_bytes: how much of it is going to be written (a link is nothing).

        Raises SpaceError with the numbers where they can't fit; then nothing was changed.
        """
        while not self._charge(record, sizes, disk_bytes):
            pass  # what was evicted is gone by now: whether that was enough the disk says
        reach("import:charged")

    def _charge(self, record: Record, sizes: Mapping[bytes, int], disk_bytes: int) -> bool:
        with self._index.write() as txn:
            ledger = Ledger(txn)
            rows = {blob: ledger.blob(blob) or BlobRow(size=size, charged=0) for blob, size in sizes.items()}
            need_bytes = sum(row.size - row.charged for row in rows.values())
            source = record.manifest.source
            snapshot = snapshot_id(record.manifest)
            eviction = self._room.make(
                ledger, need_bytes, record.blobs, source, but=snapshot, disk_bytes=disk_bytes
            )
            if not eviction.removes:
                for blob, row in rows.items():
                    ledger.put_blob(blob, msgspec.structs.replace(row, charged=row.size))
        eviction.bury()
        return not eviction.removes

    def publish(self, record: Record, found: Mapping[bytes, Sealed]) -> frozenset[bytes]:
        """Put verified, synced drafts in their places and say that they are whole, all in one transaction.

        Returns the blobs that are not: evicted meanwhile, or being fetched by somebody.
        """
        lost = set()
        with self._index.write() as txn:
            ledger = Ledger(txn)
            directories = set()
            for blob, sealed in found.items():
                row = ledger.blob(blob)
                if row is not None and row.whole:
                    continue  # another import was faster
                if row is None or row.present or not self._is_charged(ledger, row):
                    lost.add(blob)
                    continue
                directories.add(self._move(sealed, blob))
                txn.on_abort(partial(self._take_back, blob))
                self._enter_blob(ledger, blob, row, sealed, record.manifest.tenant)
            for directory in directories:
                _sync(directory)
            reach("import:moved")
        reach("import:published")
        return frozenset(lost)

    def _take_back(self, blob: bytes) -> None:
        self._layout.bury(self._layout.blob(blob))

    def _is_charged(self, ledger: Ledger, row: BlobRow) -> bool:
        """Say whether the blob's room is there; another import that was interrupted may have given it back."""
        missing_bytes = row.size - row.charged
        return not missing_bytes or self._room.fits(ledger, missing_bytes, disk_bytes=0)

    def _move(self, sealed: Sealed, blob: bytes) -> Path:
        path = self._layout.blob(blob)
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            check_directory(path.parent)
            sealed.path.rename(path)
        except OSError as error:
            raise storage_error(path, "put in its place", error) from error
        return path.parent

    def _enter_blob(self, ledger: Ledger, blob: bytes, row: BlobRow, sealed: Sealed, tenant: str) -> None:
        for number, digest in enumerate(sealed.chunks):
            ledger.put_chunk(blob, number, ChunkRow(ChunkState.SYNCED, self._writers.own, digest))
        names = [aliases(sealed.size, sealed.chunks, digest, tenant) for digest in sealed.digests]
        digests = tuple({name for each in names for name in each})
        row = msgspec.structs.replace(
            row,
            charged=sealed.size,
            present=sealed.size,
            whole=True,
            inode=sealed.inode,
            mtime_ns=sealed.mtime_ns,
            digests=digests,
        )
        ledger.put_blob(blob, row)
        for name in digests:
            known = ledger.alias(name)
            other = ledger.blob(known) if known else None
            if other is None or not other.whole:
                ledger.put_alias(name, blob)

    def discharge(self, blobs: Iterable[bytes]) -> None:
        """Give back the room of blobs that did not come."""
        with self._index.write(deletes=True) as txn:
            ledger = Ledger(txn)
            for blob in blobs:
                row = ledger.blob(blob)
                if row is not None and row.charged > row.present:
                    ledger.put_blob(blob, msgspec.structs.replace(row, charged=row.present))

    def finish(self, record: Record) -> None:
        """Say whether all of the snapshot came; one of which nothing did is forgotten."""
        snapshot = snapshot_id(record.manifest)
        path = self._layout.snapshots / snapshot

        def bury() -> None:
            delete([grave] if (grave := self._layout.bury(path)) else [])

        with self._index.write(deletes=True) as txn:
            ledger = Ledger(txn)
            row, rows = ledger.snapshot(snapshot), rows_of(ledger, record)
            if row is None:
                return
            if any(each.whole for each in rows.values()) or not any(record.blobs):
                whole = all(blob in rows and rows[blob].whole for blob in set(record.blobs) - {b""})
                ledger.put_snapshot(snapshot, msgspec.structs.replace(row, whole=whole))
            else:
                ledger.delete_blobs(blob for blob, each in rows.items() if not each.charged)
                ledger.delete_snapshot(snapshot)
                txn.after_commit(bury)


def _row(manifest: Manifest, known: SnapshotRow | None) -> SnapshotRow:
    return msgspec.structs.replace(known, used_s=time.time()) if known else SnapshotRow.of(manifest)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        raise storage_error(directory, "synced", error) from error
    finally:
        os.close(fd)
