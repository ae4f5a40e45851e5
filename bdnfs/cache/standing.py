"""Whole snapshots: their trees linked, published, and mended where somebody touched them."""

from pathlib import Path

import msgspec

from bdnfs.cache import trees
from bdnfs.cache.eviction import Eviction
from bdnfs.cache.index import Index
from bdnfs.cache.known import Known, looks_sealed, not_whole, rows_of
from bdnfs.cache.layout import Layout
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.records import read_record
from bdnfs.cache.room import Room
from bdnfs.cache.rows import Record
from bdnfs.cache.verify import Verifier
from bdnfs.cache.writers import Writers
from bdnfs.core.errors import CacheError
from bdnfs.core.steps import reach


class Standing:
    """Trees of snapshots that are whole. The caller holds the snapshot's pin."""

    def __init__(
        self,
        layout: Layout,
        index: Index,
        known: Known,
        room: Room,
        verifier: Verifier,
        writers: Writers,
    ) -> None:
        self._layout = layout
        self._index = index
        self._known = known
        self._room = room
        self._verifier = verifier
        self._writers = writers

    def restore(self, snapshot: str) -> Path | None:
        """Mend a whole snapshot that doesn't look as it was sealed; return its tree.

        A blob that was touched is rehashed. One that is not right is forgotten, and the snapshot is no
        longer whole: None. Otherwise what is wrong with the tree is linked again.
        """
        found = self._known.whole(snapshot)
        if found is None:
            return None
        record, rows = found
        for blob in set(record.blobs) - {b""}:
            row = rows.get(blob)
            if row is None or not row.whole or not self._is_right(blob):
                self._lose(snapshot)
                return None
        return self._known.standing_tree(snapshot) or self._build(snapshot, record)

    def _is_right(self, blob: bytes) -> bool:
        with self._index.read() as txn:
            row = Ledger(txn).blob(blob)
        if row is not None and row.whole and looks_sealed(self._layout, blob, row):
            return True
        return self._verifier.verify(blob) is None

    def _lose(self, snapshot: str) -> None:
        with self._index.write(deletes=True) as txn:
            ledger = Ledger(txn)
            row = ledger.snapshot(snapshot)
            if row is not None:
                not_whole(ledger, snapshot, row)
            txn.after_commit(lambda: self._bury(snapshot))

    def _bury(self, snapshot: str) -> None:
        reach("snapshot:lost")
        # Not deleted: somebody may have it mounted. The next sweep looks.
        self._layout.bury(self._layout.tree(snapshot))

    def publish(self, snapshot: str) -> Path:
        """Link the tree of a snapshot whose blobs are all whole, and say that it is whole.

        Raises CacheError where a blob was lost meanwhile, SpaceError where files have to be copied and
        don't fit.
        """
        there = self._known.standing_tree(snapshot)
        if there is not None:  # another process was faster
            return there
        record = read_record(self._layout, snapshot)
        if record is None:
            raise CacheError(f"{self._layout.snapshots / snapshot}: the snapshot's record is gone; try again")
        return self._build(snapshot, record)

    def _build(self, snapshot: str, record: Record) -> Path:
        with self._index.read() as txn:
            rows = rows_of(Ledger(txn), record)
        built = trees.build(self._layout, snapshot, record, rows, self._writers.own.hex())
        try:
            eviction = self._enter(snapshot, record, built)
        except BaseException:
            self._layout.bury(built.path)
            raise
        reach("snapshot:committed")
        eviction.bury()
        return built.path

    def _enter(self, snapshot: str, record: Record, built: trees.Tree) -> Eviction:
        with self._index.write() as txn:
            ledger = Ledger(txn)
            row = ledger.snapshot(snapshot)
            if row is None:
                raise CacheError(
                    f"{built.path}: the snapshot was evicted while it was being finished; try again"
                )
            wrong = trees.damage(self._layout, snapshot, record, rows_of(ledger, record), built.copies)
            if wrong is not None:
                raise CacheError(f"{built.path}: changed while it was being finished ({wrong}); try again")
            more_bytes = built.copied_bytes - row.copied_bytes
            eviction = self._room.make(
                ledger, max(0, more_bytes), record.blobs, f"copies of {row.source}", but=snapshot
            )
            row = msgspec.structs.replace(
                row, whole=True, copies=built.copies, copied_bytes=built.copied_bytes
            )
            ledger.put_snapshot(snapshot, row)
        return eviction
