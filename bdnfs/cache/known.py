"""What the node knows: revisions, snapshots, and which of them stand whole. The way of a hit."""

import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from bdnfs.cache import trees
from bdnfs.cache.blobs import FILE_MODE
from bdnfs.cache.index import Index
from bdnfs.cache.layout import Layout
from bdnfs.cache.ledger import Ledger, selection_key
from bdnfs.cache.records import read_record
from bdnfs.cache.rows import BlobRow, Record, SnapshotRow
from bdnfs.core.errors import SpaceError
from bdnfs.core.steps import reach


class Known:
    """Snapshots and revisions by what was asked for."""

    def __init__(self, layout: Layout, index: Index) -> None:
        self._layout = layout
        self._index = index

    def snapshot_of(self, selection: str, revision: str) -> str | None:
        """Return the id of the snapshot that selection had at the immutable revision, if known."""
        with self._index.read() as txn:
            return Ledger(txn).selected(selection_key(selection, "at", revision))

    def last_revision(self, selection: str, name: str | None) -> str | None:
        """Return the immutable revision that the branch name was last seen at."""
        with self._index.read() as txn:
            return Ledger(txn).selected(selection_key(selection, "ref", name or ""))

    def saw_revision(self, selection: str, name: str | None, revision: str) -> None:
        """Remember which immutable revision the branch name was just seen at, if there is room to."""
        if self.last_revision(selection, name) != revision:
            with suppress(SpaceError), self._index.write() as txn:
                Ledger(txn).select(selection_key(selection, "ref", name or ""), revision)
            reach("resolve:seen")

    def used(self, snapshot: str) -> None:
        """Note that the snapshot was used now, for the LRU, if there is room to: a hit needs no disk."""
        with suppress(SpaceError), self._index.write() as txn:
            ledger = Ledger(txn)
            row = ledger.snapshot(snapshot)
            if row is not None:
                ledger.put_snapshot(snapshot, msgspec.structs.replace(row, used_s=time.time()))

    def pin_until(self, snapshot: str, until_s: float) -> None:
        """Forbid the snapshot's eviction until until_s, seconds since the epoch; 0 ends that."""
        with self._index.write() as txn:
            ledger = Ledger(txn)
            row = ledger.snapshot(snapshot)
            if row is not None:
                ledger.put_snapshot(snapshot, msgspec.structs.replace(row, pinned_until_s=until_s))
        reach("pin:committed")

    def whole(self, snapshot: str) -> tuple[Record, Mapping[bytes, BlobRow]] | None:
        """Return the record and the blobs' rows of a snapshot that the index says is whole."""
        record = read_record(self._layout, snapshot)
        if record is None:
            return None
        with self._index.read() as txn:
            ledger = Ledger(txn)
            row = ledger.snapshot(snapshot)
            if row is None or not row.whole:
                return None
            return record, rows_of(ledger, record)

    def standing_tree(self, snapshot: str) -> Path | None:
        """Return the snapshot's tree if it is whole and looks as it was sealed."""
        record = read_record(self._layout, snapshot)
        if record is None:
            return None
        with self._index.read() as txn:
            ledger = Ledger(txn)
            row, rows = ledger.snapshot(snapshot), rows_of(ledger, record)
        if row is None or not row.whole:
            return None
        if trees.damage(self._layout, snapshot, record, rows, row.copies) is not None:
            return None
        return self._layout.tree(snapshot)


def rows_of(ledger: Ledger, record: Record) -> dict[bytes, BlobRow]:
    """Return the rows of the record's blobs, as far as there are any."""
    found = {blob: ledger.blob(blob) for blob in set(record.blobs) - {b""}}
    return {blob: row for blob, row in found.items() if row is not None}


def looks_sealed(layout: Layout, blob: bytes, row: BlobRow) -> bool:
    """Say whether the blob's file is the one that was sealed, not written to since."""
    try:
        status = os.lstat(layout.blob(blob))
    except OSError:
        return False
    return status.st_mode == stat.S_IFREG | FILE_MODE and (
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
    ) == (row.inode, row.size, row.mtime_ns)


def not_whole(ledger: Ledger, snapshot: str, row: SnapshotRow) -> None:
    """Say that the snapshot is not whole any more."""
    ledger.put_snapshot(snapshot, msgspec.structs.replace(row, whole=False, copies=(), copied_bytes=0))
