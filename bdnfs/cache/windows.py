"""`--no-fill`: a window's chunks are charged one by one, and go one by one.

Admission charged each window with room for one chunk, its *floor*, on one of its blobs: whatever
others do, a window can always go on with a chunk at a time.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from bdnfs.cache.eviction import Eviction
from bdnfs.cache.index import Index
from bdnfs.cache.layout import Layout, delete
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.pins import remove_pin_file
from bdnfs.cache.records import read_record
from bdnfs.cache.room import Room
from bdnfs.cache.rows import ChunkRef
from bdnfs.cache.sweep import own_blobs
from bdnfs.core.errors import SpaceError
from bdnfs.core.ranges import chunk_range


class Windows:
    """What windows may keep."""

    def __init__(self, layout: Layout, index: Index, room: Room) -> None:
        self._layout = layout
        self._index = index
        self._room = room

    def reserve(self, blob: bytes, size: int, *, evict: bool) -> bool:
        """Charge a window's blob with another chunk; False where it doesn't fit (evict: nor can be made to)."""
        while True:
            with self._index.write() as txn:
                ledger = Ledger(txn)
                row = ledger.blob(blob)
                if row is None or (not evict and not self._room.fits(ledger, size)):
                    return False
                try:
                    eviction = self._room.make(ledger, size, (blob,), "a window") if evict else Eviction()
                except SpaceError:
                    return False
                charged = not eviction.removes  # as in an admission
                if charged:
                    ledger.put_blob(blob, msgspec.structs.replace(row, charged=row.charged + size))
            eviction.bury()
            if charged:
                return True

    def floor(self, snapshots: Iterable[str]) -> bytes | None:
        """Return the blob with the largest floor of new windows; None where all of them is whole here."""
        records = [read_record(self._layout, snapshot) for snapshot in snapshots]
        with self._index.read() as txn:
            ledger = Ledger(txn)
            charged = {
                blob: row.charged
                for record in records
                for blob in (own_blobs(record) if record else ())
                if (row := ledger.blob(blob)) is not None and row.charged
            }
        return max(charged, key=lambda blob: charged[blob], default=None)

    def move(self, source: bytes, target: bytes, size: int) -> None:
        """Charge target in the place of source: a chunk that is about to stand on the floor."""
        with self._index.write() as txn:
            ledger = Ledger(txn)
            _charge(ledger, source, -size)
            _charge(ledger, target, size)

    def release(self, refs: Iterable[ChunkRef], floor: tuple[ChunkRef, bytes] | None) -> None:
        """Take chunks out of a window whose space has been given back: their rows and their charge go.

        floor: the chunk that stands on the floor, and the blob that gets its charge back.
        """
        with self._index.write(deletes=True) as txn:
            ledger = Ledger(txn)
            for ref in refs:
                row = ledger.blob(ref.blob_id)
                if row is None:
                    continue
                start, stop = chunk_range(row.size, ref.number)
                here = ledger.chunk(*ref) is not None
                ledger.delete_chunk(*ref)
                row = msgspec.structs.replace(
                    row, charged=row.charged - (stop - start), present=row.present - (stop - start) * here
                )
                ledger.put_blob(ref.blob_id, row)
                if floor is not None and ref == floor[0]:
                    _charge(ledger, floor[1], stop - start)

    def drop(self, snapshot: str) -> None:
        """Forget a window's snapshot and its own blobs; nobody may have it open.

        A snapshot that is no window stays: a window's daemon shows what was whole already from there.
        """
        with self._index.read() as txn:
            row = Ledger(txn).snapshot(snapshot)
        if row is None or not row.window:
            return
        record = read_record(self._layout, snapshot)
        own = own_blobs(record) if record else set()
        paths = [self._layout.blob(blob) for blob in own] + [self._layout.snapshots / snapshot]
        graves: list[Path] = []

        def bury() -> None:
            graves.extend(grave for path in paths if (grave := self._layout.bury(path)) is not None)
            remove_pin_file(self._layout, snapshot)

        with self._index.write(deletes=True) as txn:
            ledger = Ledger(txn)
            ledger.delete_blobs(own)
            ledger.delete_snapshot(snapshot)
            txn.after_commit(bury)
        delete(graves)


def _charge(ledger: Ledger, blob: bytes, size: int) -> None:
    row = ledger.blob(blob)
    if row is not None:
        ledger.put_blob(blob, msgspec.structs.replace(row, charged=row.charged + size))
