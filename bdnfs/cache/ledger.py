"""Rows read and written inside one index transaction; every change of what is charged goes here."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec
from blake3 import blake3

from bdnfs.cache.index import BrokenIndexError, Transaction
from bdnfs.cache.rows import BlobRow, ChunkRow, SnapshotRow
from bdnfs.core.errors import UNREADABLE

_blob_decoder = msgspec.msgpack.Decoder(BlobRow)
_snapshot_decoder = msgspec.msgpack.Decoder(SnapshotRow)
_encoder = msgspec.msgpack.Encoder()
_CHARGED, _PRESENT = b"charged_bytes", b"present_bytes"
_BUILT = b"built"  # a fresh index has yet to be filled from the records
_GRAVE = b"grave "  # + blob id: its row is gone, its file may not be

T = TypeVar("T")


class Ledger:
    """Typed access to the tables, with the two running totals kept right."""

    def __init__(self, txn: Transaction) -> None:
        self.txn = txn

    # -- totals ---------------------------------------------------------------------------------

    @property
    def charged_bytes(self) -> int:
        """What counts against the capacity: all of every blob that is present or being filled."""
        return self._total(_CHARGED)

    @property
    def present_bytes(self) -> int:
        return self._total(_PRESENT)

    @property
    def built(self) -> bool:
        """False where this index is new, and there may be records and blobs it doesn't know yet."""
        return self.txn.get("meta", _BUILT) is not None

    def set_built(self) -> None:
        self.txn.put("meta", _BUILT, b"1")

    # -- blobs ----------------------------------------------------------------------------------

    def blob(self, blob_id: bytes) -> BlobRow | None:
        data = self.txn.get("blobs", blob_id)
        return None if data is None else _decoded(_blob_decoder, data)

    def blobs(self) -> Iterator[tuple[bytes, BlobRow]]:
        for key, data in self.txn.scan("blobs"):
            yield key, _decoded(_blob_decoder, data)

    def put_blob(self, blob_id: bytes, row: BlobRow) -> None:
        before = self.blob(blob_id)
        self._count(
            row.charged - (before.charged if before else 0), row.present - (before.present if before else 0)
        )
        self.txn.put("blobs", blob_id, _encoder.encode(row))

    def delete_blobs(self, blob_ids: Iterable[bytes]) -> None:
        """Forget blobs, their chunks and their aliases, and remember that their files have to go.

        Table by table in key order: a page is copied once and soon empty, so that deleting everything
        needs no more room than deleting a little.
        """
        rows = {blob_id: row for blob_id in sorted(blob_ids) if (row := self.blob(blob_id)) is not None}
        aliases = {digest.encode(): blob_id for blob_id, row in rows.items() for digest in row.digests}
        for digest, blob_id in sorted(aliases.items()):
            if self.txn.get("aliases", digest) == blob_id:
                self.txn.delete("aliases", digest)
        for blob_id in rows:
            for index in [index for index, _ in self.chunks(blob_id)]:
                self.delete_chunk(blob_id, index)
        for blob_id in rows:
            self.txn.delete("blobs", blob_id)
            self.txn.put("meta", _GRAVE + blob_id, b"")
        self._count(-sum(row.charged for row in rows.values()), -sum(row.present for row in rows.values()))

    def graves(self) -> list[bytes]:
        """Return the deleted blobs whose files may still be there: a crash may have come first."""
        return [key[len(_GRAVE) :] for key, _ in self.txn.scan("meta", _GRAVE)]

    def close_grave(self, blob_id: bytes) -> None:
        self.txn.delete("meta", _GRAVE + blob_id)

    def alias(self, digest: str) -> bytes | None:
        """Return the verified blob with this content, if the node has one."""
        return self.txn.get("aliases", digest.encode())

    def put_alias(self, digest: str, blob_id: bytes) -> None:
        self.txn.put("aliases", digest.encode(), blob_id)

    # -- chunks ---------------------------------------------------------------------------------

    def chunk(self, blob_id: bytes, index: int) -> ChunkRow | None:
        data = self.txn.get("chunks", _chunk_key(blob_id, index))
        return None if data is None else _unpacked(data)

    def chunks(self, blob_id: bytes) -> Iterator[tuple[int, ChunkRow]]:
        for key, data in self.txn.scan("chunks", blob_id):
            yield int.from_bytes(key[32:], "big"), _unpacked(data)

    def put_chunk(self, blob_id: bytes, index: int, row: ChunkRow) -> bool:
        """Write the chunk's row; return whether the chunk is new."""
        key = _chunk_key(blob_id, index)
        new = self.txn.get("chunks", key) is None
        self.txn.put("chunks", key, row.pack())
        return new

    def delete_chunk(self, blob_id: bytes, index: int) -> None:
        self.txn.delete("chunks", _chunk_key(blob_id, index))

    # -- snapshots ------------------------------------------------------------------------------

    def snapshot(self, snapshot_id: str) -> SnapshotRow | None:
        data = self.txn.get("snapshots", snapshot_id.encode())
        return None if data is None else _decoded(_snapshot_decoder, data)

    def snapshots(self) -> Iterator[tuple[str, SnapshotRow]]:
        for key, data in self.txn.scan("snapshots"):
            yield _text(key), _decoded(_snapshot_decoder, data)

    def put_snapshot(self, snapshot_id: str, row: SnapshotRow) -> None:
        before = self.snapshot(snapshot_id)
        grown = row.copied_bytes - (before.copied_bytes if before else 0)
        self._count(grown, grown)
        self.txn.put("snapshots", snapshot_id.encode(), _encoder.encode(row))

    def delete_snapshot(self, snapshot_id: str) -> None:
        row = self.snapshot(snapshot_id)
        if row is not None:
            self._count(-row.copied_bytes, -row.copied_bytes)
        self.txn.delete("snapshots", snapshot_id.encode())
        for key, value in list(self.txn.scan("selections")):
            if value == snapshot_id.encode():
                self.txn.delete("selections", key)

    # -- selections: what a source at a revision, after its patterns, was ------------------------

    def selected(self, key: bytes) -> str | None:
        value = self.txn.get("selections", key)
        return None if value is None else _text(value)

    def select(self, key: bytes, value: str) -> None:
        self.txn.put("selections", key, value.encode())

    def _total(self, key: bytes) -> int:
        try:
            return int(self.txn.get("meta", key) or 0)
        except ValueError as error:
            raise BrokenIndexError("a total of the index is damaged") from error

    def _count(self, charged: int, present: int) -> None:
        if charged:
            self.txn.put("meta", _CHARGED, b"%d" % (self.charged_bytes + charged))
        if present:
            self.txn.put("meta", _PRESENT, b"%d" % (self.present_bytes + present))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BrokenIndexError("a text in the index is damaged") from error


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        raise BrokenIndexError(f"a row of the index is damaged ({error})") from error


def _unpacked(data: bytes) -> ChunkRow:
    try:
        return ChunkRow.unpack(data)
    except (ValueError, IndexError) as error:
        raise BrokenIndexError(f"a chunk's row in the index is damaged ({error})") from error


def _chunk_key(blob_id: bytes, index: int) -> bytes:
    return blob_id + index.to_bytes(4, "big")


def selection_key(selection: str, kind: str, revision: str) -> bytes:
    """Return the key under which `selections` holds what a selection was at a revision, or a branch at last."""
    return blake3(f"{selection}\0{kind}\0{revision}".encode()).digest()
