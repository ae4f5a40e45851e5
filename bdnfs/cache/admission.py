"""Admission: room for a snapshot is charged before the first byte of it is fetched."""

import secrets
import time
from functools import partial
from pathlib import Path

import msgspec

from bdnfs.cache.blobs import alias_name, blob_id
from bdnfs.cache.index import Index
from bdnfs.cache.layout import Layout, delete
from bdnfs.cache.ledger import Ledger, selection_key
from bdnfs.cache.records import read_record, snapshot_id, write_record
from bdnfs.cache.room import Room
from bdnfs.cache.rows import BlobRow, Record, SnapshotRow
from bdnfs.cache.sweep import Sweep
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.steps import reach
from bdnfs.manifest.model import FileEntry, Manifest


def new_salt() -> str:
    """Return what makes a window's snapshot and blobs its own."""
    return f"\0window {secrets.token_hex(8)}"


def blob_for(ledger: Ledger, origin: str, file: FileEntry, tenant: str = "") -> bytes:
    """Return the blob that holds this file version: the tenant's verified one of any origin, else its origin's."""
    if file.size == 0:
        return b""
    if file.digest is not None:
        verified = ledger.alias(alias_name(tenant, file.digest))
        row = ledger.blob(verified) if verified else None
        if verified and row and row.whole and row.size == file.size:
            return verified
    return blob_id(origin, file, tenant=tenant)


class Admission:
    """Lets snapshots into the cache."""

    def __init__(self, layout: Layout, index: Index, room: Room, sweep: Sweep) -> None:
        self._layout = layout
        self._index = index
        self._room = room
        self._sweep = sweep

    def admit(self, manifest: Manifest, selection: str, branch: str | None, patterns: str, salt: str) -> None:
        """Make room for the snapshot, charge its bytes and remember it; the caller holds its pin.

        salt: a window's; it is charged with one chunk, its floor, and with others when they come.
        Raises SpaceError with the numbers where it can't fit; then nothing was changed, unless what was
        evicted is still open somewhere: it is gone, and its room has not come.
        """
        record = Record(manifest, (), selection, branch, salt)
        while not self._admit(record, patterns):
            pass  # what was evicted is gone by now: whether that was enough the disk says

    def _admit(self, record: Record, patterns: str) -> bool:
        """Admit; False where only room was made.

        What is evicted may still be open somewhere, and its space not free yet: that the reserve holds can
        only be seen afterwards.
        """
        manifest, snapshot = record.manifest, snapshot_id(record.manifest, record.salt)
        with self._index.write() as txn:
            ledger = Ledger(txn)
            dead = self._sweep.sweep(ledger)
            record = msgspec.structs.replace(record, blobs=self._blobs_for(ledger, record))
            need_bytes = sum(_missing(ledger, record).values())
            eviction = self._room.make(ledger, need_bytes, record.blobs, manifest.source, but=snapshot)
            admitted = not eviction.removes
            if admitted:
                write_record(self._layout, snapshot, record)
                if ledger.snapshot(snapshot) is None:
                    txn.on_abort(partial((self._layout.snapshots / snapshot).unlink, missing_ok=True))
                reach("admit:record-written")
                dead += self._charge(ledger, record)
                ledger.put_snapshot(snapshot, _row(ledger, snapshot, record, patterns))
                if not record.salt:
                    ledger.select(selection_key(record.selection, "at", manifest.revision), snapshot)
        reach("admit:committed")
        eviction.bury()
        delete(dead)
        return admitted

    def _blobs_for(self, ledger: Ledger, record: Record) -> tuple[bytes, ...]:
        """Name the blob of each file; what another process is filling by its record keeps its name."""
        manifest, salt = record.manifest, record.salt
        snapshot = snapshot_id(manifest, salt)
        known = read_record(self._layout, snapshot) if ledger.snapshot(snapshot) else None
        before = known.blobs if known is not None else (b"",) * len(manifest.files)
        blobs = []
        for file, earlier in zip(manifest.files, before, strict=True):
            blob = (
                earlier
                if earlier and ledger.blob(earlier)
                else blob_for(ledger, manifest.origin, file, manifest.tenant)
            )
            row = ledger.blob(blob) if blob else None
            if blob and salt and not (row and row.whole):
                blob = blob_id(manifest.origin, file, salt, manifest.tenant)
            blobs.append(blob)
        return tuple(blobs)

    def _charge(self, ledger: Ledger, record: Record) -> list[Path]:
        """Charge what is missing; return files without a row that lay where a new blob's will be.

        Such a file, left by a crash, may be mounted somewhere: it is never filled in place.
        """
        missing = _missing(ledger, record)
        graves: list[Path | None] = []
        for file, blob in zip(record.manifest.files, record.blobs, strict=True):
            row = ledger.blob(blob) if blob else None
            if blob and row is None:
                graves.append(self._layout.bury(self._layout.blob(blob)))
                row = BlobRow(size=file.size, charged=0)
            if row is not None:
                charged = row.charged + missing.pop(blob, 0)
                ledger.put_blob(blob, msgspec.structs.replace(row, charged=charged))
        return [grave for grave in graves if grave is not None]


def _missing(ledger: Ledger, record: Record) -> dict[bytes, int]:
    """Return how many bytes each blob has yet to be charged; of a window's own its floor, on the largest."""
    missing = {}
    own = {}
    for file, blob in zip(record.manifest.files, record.blobs, strict=True):
        row = ledger.blob(blob) if blob else None
        charged = row.charged if row else 0
        if blob and record.salt and not (row and row.whole):
            own[blob] = file.size
        elif blob and file.size > charged:
            missing[blob] = file.size - charged
    if own:
        largest = max(own, key=lambda blob: own[blob])
        missing[largest] = min(own[largest], CHUNK_BYTES)
    return missing


def _row(ledger: Ledger, snapshot: str, record: Record, patterns: str) -> SnapshotRow:
    known = ledger.snapshot(snapshot)
    if known is not None:
        return msgspec.structs.replace(known, used_s=time.time(), patterns=patterns)
    return SnapshotRow.of(record.manifest, patterns=patterns, window=bool(record.salt))
