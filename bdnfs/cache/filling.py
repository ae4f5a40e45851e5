"""Blobs on their way to being whole: opened, their chunks published, taken back, sealed."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from bdnfs.cache.blobs import FILE_MODE, Blob, alias_name
from bdnfs.cache.index import Index
from bdnfs.cache.layout import Layout, delete
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.rows import BlobRow, ChunkRef, ChunkRow, ChunkState, Seal
from bdnfs.cache.writers import Writers
from bdnfs.core.errors import CacheError
from bdnfs.core.ranges import chunk_count, chunk_range
from bdnfs.core.steps import reach


class Filling:
    """The rows of blobs and chunks, as fetchers and sealers change them."""

    def __init__(self, layout: Layout, index: Index, writers: Writers) -> None:
        self._layout = layout
        self._index = index
        self._writers = writers

    # -- chunks -----------------------------------------------------------------------------------

    def open(self, blob: bytes, size: int) -> Blob:
        """Open a blob with what is present of it; chunks of a dead writer are not, until adopted.

        A file that is missing or of another size than its rows say has lost its chunks.
        """
        opened, seen = self._open(blob, size)
        if opened is None:
            self.forget_all(blob, seen)
            opened, _ = self._open(blob, size)
            if opened is None:
                raise CacheError(f"{self._layout.blob(blob)}: is replaced again and again; what does that?")
        return opened

    def _open(self, blob: bytes, size: int) -> tuple[Blob | None, os.stat_result | None]:
        """Open the blob as its rows say it is; None, and the file seen, where it isn't."""
        path = self._layout.blob(blob)
        # Under the index's lock: nobody seals, publishes or evicts it between the row and the file.
        with self._index.read() as txn:
            ledger = Ledger(txn)
            row = ledger.blob(blob)
            if row is None:
                raise CacheError(f"{path}: was evicted while it was in use; try again")
            chunks = list(ledger.chunks(blob))
            try:
                seen = os.lstat(path)
            except FileNotFoundError:
                seen = None
            if chunks and (seen is None or seen.st_size != row.size):
                return None, seen
            # An import that died may have linked a file of others here: that is never written to.
            if seen is not None and seen.st_nlink > 1 and not chunks:
                return None, seen
            try:
                opened = Blob(path, blob, size, writable=not row.whole, create=not chunks)
            except FileNotFoundError:
                return None, None
        alive: dict[bytes, bool] = {}
        for index, chunk in chunks:
            if chunk.state is ChunkState.FILLED and chunk.writer not in alive:
                alive[chunk.writer] = self._writers.is_alive(chunk.writer)
            if index < len(opened.present):
                opened.present[index] = chunk.state is ChunkState.SYNCED or alive[chunk.writer]
        if opened.writable and seen is not None and not any(alive.values()):
            opened.settle()
        return opened, seen

    def adopt(self, blob: Blob, index: int, row: ChunkRow, buffer: memoryview) -> bool:
        """Trust a chunk that a dead writer left, if the disk says the same; else forget its row."""
        blob.sync()
        blob.drop_pages()
        right = blob.digest(index, buffer) == row.digest
        reach("chunk:rehashed")
        if right:
            self.mark_synced(blob.id, {index: row})
        else:
            self.forget(blob.id, [index])
        return right

    def commit(self, rows: Iterable[tuple[ChunkRef, ChunkRow]]) -> frozenset[bytes]:
        """Publish chunks, all in one transaction; return the blobs that have been evicted meanwhile."""
        lost = set()
        with self._index.write() as txn:
            ledger = Ledger(txn)
            grown: dict[bytes, int] = {}
            for ref, row in rows:
                blob = ledger.blob(ref.blob_id)
                if blob is None:
                    lost.add(ref.blob_id)
                elif ledger.chunk(*ref) == row._replace(state=ChunkState.SYNCED):
                    continue
                elif ledger.put_chunk(ref.blob_id, ref.number, row):
                    start, stop = chunk_range(blob.size, ref.number)
                    grown[ref.blob_id] = grown.get(ref.blob_id, 0) + stop - start
            for name, size in grown.items():
                blob = ledger.blob(name)
                assert blob is not None  # read above, in this transaction
                present = blob.present + size
                charged = max(blob.charged, present)
                ledger.put_blob(name, msgspec.structs.replace(blob, present=present, charged=charged))
        return frozenset(lost)

    def mark_synced(self, blob: bytes, rows: dict[int, ChunkRow]) -> None:
        """Say that these chunks have reached the disk; those whose rows are no longer the same stay as they are."""
        with self._index.write() as txn:
            ledger = Ledger(txn)
            for index, row in rows.items():
                if ledger.chunk(blob, index) == row:
                    ledger.put_chunk(blob, index, row._replace(state=ChunkState.SYNCED))

    def forget(self, blob: bytes, indices: Iterable[int]) -> None:
        """Take back chunks: their bytes are not what their rows say."""
        with self._index.write(deletes=True) as txn:
            _forget(Ledger(txn), blob, list(indices))

    def forget_unsynced(self, blob: bytes) -> None:
        """Take back every chunk that may not have reached the disk."""
        with self._index.write(deletes=True) as txn:
            ledger = Ledger(txn)
            _forget(
                ledger, blob, [index for index, row in ledger.chunks(blob) if row.state is ChunkState.FILLED]
            )

    def forget_all(self, blob: bytes, seen: os.stat_result | None) -> None:
        """Take back the whole blob and its file, unless that is no longer the one seen (None: there was none).

        A new file takes its place: whoever has the old inode mounted keeps its own.
        """
        path, graves = self._layout.blob(blob), list[Path]()

        def bury() -> None:
            reach("blob:forgotten")
            grave = self._layout.bury(path)
            if grave is not None:
                graves.append(grave)

        with self._index.write(deletes=True) as txn:
            try:
                now = os.lstat(path)
            except FileNotFoundError:
                now = None
            if (now.st_ino if now else None) == (seen.st_ino if seen else None):
                ledger = Ledger(txn)
                _forget(ledger, blob, [index for index, _ in ledger.chunks(blob)])
                txn.after_commit(bury)
        delete(graves)

    def unsynced(self, blob: bytes) -> dict[int, ChunkRow]:
        """Return the blob's chunks that may still be in memory only."""
        with self._index.read() as txn:
            return {index: row for index, row in Ledger(txn).chunks(blob) if row.state is ChunkState.FILLED}

    # -- blobs ------------------------------------------------------------------------------------

    def publish(self, seals: Iterable[Seal]) -> frozenset[bytes]:
        """Say that blobs are whole: verified, sealed and synced, with every chunk they have.

        Returns those that have been evicted, replaced or have lost chunks meanwhile, and are not whole.
        """
        lost = set()
        with self._index.write() as txn:
            ledger = Ledger(txn)
            for seal in seals:
                if not self._publish(ledger, seal):
                    lost.add(seal.blob_id)
        reach("blob:committed")
        return frozenset(lost)

    def _publish(self, ledger: Ledger, seal: Seal) -> bool:
        row, path = ledger.blob(seal.blob_id), self._layout.blob(seal.blob_id)
        if row is None:
            return False
        try:
            if os.lstat(path).st_ino != seal.inode:
                return False
            os.chmod(path, FILE_MODE)  # another process may have opened it since it was sealed
        except FileNotFoundError:
            return False
        chunks = list(ledger.chunks(seal.blob_id))
        if len(chunks) != chunk_count(row.size):
            return False
        for index, chunk in chunks:
            if chunk.state is ChunkState.FILLED:
                ledger.put_chunk(seal.blob_id, index, chunk._replace(state=ChunkState.SYNCED))
        names = aliases(row.size, [chunk.digest for _, chunk in chunks], seal.digest, seal.tenant)
        digests = tuple({*row.digests, *names})
        row = msgspec.structs.replace(
            row, whole=True, inode=seal.inode, mtime_ns=seal.mtime_ns, digests=digests
        )
        ledger.put_blob(seal.blob_id, row)
        for name in digests:
            known = ledger.alias(name)
            found = ledger.blob(known) if known else None
            if known is None or found is None or not found.whole:
                ledger.put_alias(name, seal.blob_id)
        return True

    def row(self, blob: bytes) -> BlobRow | None:
        with self._index.read() as txn:
            return Ledger(txn).blob(blob)


def aliases(size: int, chunks: Sequence[bytes], digest: str | None, tenant: str = "") -> tuple[str, ...]:
    """Return the names of a tenant's verified content: upstream's digest, if any, and the volume format's."""
    from bdnfs.volume.digests import content_digest  # late: a hit verifies nothing

    known = [digest] if digest else []
    if chunks:
        known.append(content_digest(size, chunks))
    return tuple(alias_name(tenant, name) for name in dict.fromkeys(known))


def _forget(ledger: Ledger, blob: bytes, indices: list[int]) -> None:
    row = ledger.blob(blob)
    if row is None:
        return
    lost = 0
    for index in indices:
        if ledger.chunk(blob, index) is not None:
            ledger.delete_chunk(blob, index)
            start, stop = chunk_range(row.size, index)
            lost += stop - start
    whole = row.whole and not indices
    ledger.put_blob(blob, msgspec.structs.replace(row, present=row.present - lost, whole=whole))
