"""Chunks that this node has in a blob: found by the file's content, given from the very file that was looked at.

A file descriptor of ours stays open while the chunk may be being sent, with a shared lock on the chunk's bytes. So
eviction can unlink the blob and even put another in its place: what is sent is what was looked at. Chunks of
whole blobs, and of those that are being filled, are given; a window's (`--no-fill`), which are punched, never:
its blobs have ids that nobody else knows, and no content's name leads to them.
"""

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from bdnfs.cache.blobs import alias_name
from bdnfs.cache.known import looks_sealed
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.locks import is_same_file, try_lock, unlock
from bdnfs.cache.node import NodeCache
from bdnfs.cache.rows import BlobRow, ChunkRow, ChunkState
from bdnfs.core.errors import BdnfsError
from bdnfs.core.ranges import CHUNK_BYTES, chunk_range
from bdnfs.serve.node.asked import Asked

# After this nobody is about to open it any more: nginx does so as soon as it is told to.
HELD_S = 15.0


@dataclass
class _Opened:
    """A blob's file. until: when each chunk that is locked may be let go (time.monotonic)."""

    fd: int
    inode: int
    until: dict[int, float] = field(default_factory=dict)


class InBlob(NamedTuple):
    """A chunk in a file of size bytes that is open as fd of this process, for HELD_S at least."""

    fd: int
    start: int
    stop: int
    size: int


class Blobs:
    """Chunks of blobs of one tenant. Blocking, of several threads' use."""

    def __init__(self, cache: NodeCache, tenant: str) -> None:
        self._cache, self._tenant = cache, tenant
        self._mutex = threading.Lock()
        self._opened: dict[bytes, _Opened] = {}

    @property
    def are_open(self) -> bool:
        """Whether there is anything to let go."""
        return bool(self._opened)

    def find(self, asked: Asked) -> InBlob | None:
        """Return where the chunk asked for is, or None; held open and locked for HELD_S."""
        try:
            named = self._named(asked)
            with self._mutex:
                return next((found for blob, row in named if (found := self._held(asked, blob, row))), None)
        except (BdnfsError, OSError):
            return None  # the mirror has it, too

    def _named(self, asked: Asked) -> list[tuple[bytes, BlobRow]]:
        """Return the blobs in which the index has exactly this chunk."""
        with self._cache.read() as ledger:
            found = self._alike(ledger, asked)
        return [(blob, row) for blob, row, chunk in found if self._is_there(chunk)]

    def _alike(self, ledger: Ledger, asked: Asked) -> list[tuple[bytes, BlobRow, ChunkRow]]:
        """Return where the index has this chunk: in the blob of the file's content, in that of the asker's name."""
        number, found = asked.start // CHUNK_BYTES, []
        alias = ledger.alias(alias_name(self._tenant, asked.file)) if asked.file else None
        for blob in dict.fromkeys(name for name in (alias, asked.blob) if name):
            row, chunk = ledger.blob(blob), ledger.chunk(blob, number)
            if (
                row is not None
                and chunk is not None
                and chunk.digest.hex() == asked.key.digest
                and chunk_range(row.size, number) == (asked.start, asked.stop)
            ):
                found.append((blob, row, chunk))
        return found

    def covered(self, chunks: Iterable[Asked]) -> list[Asked]:
        """Return those that a blob of their file has on the disk: they need not be kept a second time."""
        found = []
        with self._cache.read() as ledger:
            for asked in chunks:
                alike = self._alike(ledger, asked)
                found += [
                    (asked, blob, row) for blob, row, chunk in alike if chunk.state is ChunkState.SYNCED
                ]
        sealed: dict[bytes, bool] = {}
        for _, blob, row in found:
            if row.whole and blob not in sealed:
                sealed[blob] = looks_sealed(self._cache.layout, blob, row)
        return [asked for asked, blob, _ in found if sealed.get(blob, True)]

    def _is_there(self, chunk: ChunkRow) -> bool:
        return chunk.state is ChunkState.SYNCED or self._cache.is_alive(chunk.writer)

    def _held(self, asked: Asked, blob: bytes, row: BlobRow) -> InBlob | None:
        if row.whole and not looks_sealed(self._cache.layout, blob, row):
            return None
        opened = self._open(blob, row.size)
        if opened is None:
            return None
        number = asked.start // CHUNK_BYTES
        locked = number in opened.until or try_lock(
            opened.fd, exclusive=False, start=asked.start, length=CHUNK_BYTES
        )
        if not locked:
            return None  # somebody is about to write it anew
        opened.until[number] = time.monotonic() + HELD_S
        return InBlob(opened.fd, asked.start, asked.stop, row.size)

    def _open(self, blob: bytes, size: int) -> _Opened | None:
        path = self._cache.layout.blob(blob)
        opened = self._opened.get(blob)
        if opened is not None and is_same_file(opened.fd, path):
            return opened
        if opened is not None:
            # Another file took its place: the old one is held for whom it was promised to.
            self._opened[blob + opened.inode.to_bytes(8, "big")] = self._opened.pop(blob)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        status = os.fstat(fd)
        if status.st_size != size or status.st_uid != os.geteuid():
            os.close(fd)
            return None
        found = self._opened[blob] = _Opened(fd, status.st_ino)
        return found

    def let_go(self) -> None:
        """Unlock and close what nobody can be about to open any more; to be called now and then."""
        now_s = time.monotonic()
        with self._mutex:
            for blob, opened in list(self._opened.items()):
                for number in [number for number, until_s in opened.until.items() if until_s < now_s]:
                    del opened.until[number]
                    unlock(opened.fd, start=number * CHUNK_BYTES, length=CHUNK_BYTES)
                if not opened.until:
                    os.close(opened.fd)
                    del self._opened[blob]

    def close(self) -> None:
        with self._mutex:
            for opened in self._opened.values():
                os.close(opened.fd)
            self._opened.clear()


def read_blob(found: InBlob, into: memoryview) -> bool:
    """Fill `into` with a chunk; False where it can't be read. Blocking."""
    try:
        offset = found.start
        while into:
            count = os.preadv(found.fd, [into], offset)
            if count == 0:
                return False
            offset, into = offset + count, into[count:]
    except OSError:
        return False
    return True
