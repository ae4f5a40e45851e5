"""Rehashing: whether a blob is still what was written."""

import os

import msgspec

from bdnfs.cache.blobs import Blob
from bdnfs.cache.filling import Filling
from bdnfs.cache.index import Index
from bdnfs.cache.layout import Layout
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.rows import ChunkRow, ChunkState
from bdnfs.cache.writers import Writers
from bdnfs.core.errors import CacheError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.steps import reach


class Verifier:
    """Rehashes blobs, and forgets those that are not what their rows say."""

    def __init__(self, layout: Layout, index: Index, filling: Filling, writers: Writers) -> None:
        self._layout = layout
        self._index = index
        self._filling = filling
        self._writers = writers

    def verify(self, blob: bytes) -> str | None:
        """Rehash the blob; return what is wrong with it, having forgotten it, or None."""
        with self._index.read() as txn:
            ledger = Ledger(txn)
            row, chunks = ledger.blob(blob), dict(ledger.chunks(blob))
        if row is None:
            return "is not in the index"
        if not chunks:
            return None  # admitted, and nothing of it is here yet
        path = self._layout.blob(blob)
        try:
            seen = os.lstat(path)
        except FileNotFoundError:
            self._filling.forget_all(blob, None)
            return "its file is missing"
        try:
            opened = Blob(path, blob, row.size, writable=False)
        except (OSError, CacheError) as error:
            self._filling.forget_all(blob, seen)
            return f"can't be opened ({error})"
        try:
            bad = self._bad_chunks(opened, chunks)
            if bad:
                reach("verify:found")
                self._filling.forget_all(blob, seen)
                return f"chunk {bad[0]} of {len(chunks)} is not what was written ({len(bad)} bad in all)"
            if row.whole:
                self._seal_again(opened)
        finally:
            opened.close()
        return None

    def _bad_chunks(self, blob: Blob, chunks: dict[int, ChunkRow]) -> list[int]:
        blob.drop_pages()
        buffer = memoryview(bytearray(min(blob.size, CHUNK_BYTES)))
        bad = []
        for index, chunk in chunks.items():
            if chunk.state is ChunkState.FILLED and self._writers.is_alive(chunk.writer):
                continue
            try:
                if blob.digest(index, buffer) != chunk.digest:
                    bad.append(index)
            except CacheError:
                bad.append(index)
        return bad

    def _seal_again(self, blob: Blob) -> None:
        """What is right may have been touched: let it look as it did."""
        inode, mtime_ns = blob.seal()
        reach("verify:sealed")
        with self._index.write() as txn:
            ledger = Ledger(txn)
            row = ledger.blob(blob.id)
            if row is not None and row.whole and blob.is_current():
                ledger.put_blob(blob.id, msgspec.structs.replace(row, inode=inode, mtime_ns=mtime_ns))
