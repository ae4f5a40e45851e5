"""Digests of whole files: upstream's, and the volume format's own."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from blake3 import blake3

from bdnfs.core.errors import IntegrityError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.manifest.model import FileEntry
from bdnfs.volume.records import chunkmap_of


class Digest(Protocol):
    """What hashlib's objects can do, as far as it is used here."""

    def update(self, data: bytes | memoryview, /) -> Any: ...

    def hexdigest(self) -> str: ...


def open_digest(file: FileEntry) -> Digest | None:
    """Return a fresh hash to be fed with the whole of file, or None where it has no digest."""
    if file.digest is None:
        return None
    algorithm = file.digest.partition(":")[0]
    if algorithm == "sha256":
        return hashlib.sha256()
    if algorithm == "git-sha1":  # git hash-object: the header is part of what is hashed
        return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    if algorithm == "b3":
        return blake3()
    if algorithm == "b3map":
        return _Chunkmap()
    raise IntegrityError(
        f"{file.path}: its digest {file.digest.partition(':')[0]!r} is of a kind bdnfs doesn't know"
    )


def check_digest(file: FileEntry, found: Digest, where: str) -> None:
    """Raise IntegrityError unless the hash found is what upstream promised for file."""
    expected = (file.digest or "").partition(":")[2]
    if found.hexdigest() != expected:
        raise IntegrityError(
            f"{where}: {file.path} came with the digest {found.hexdigest()[:16]}… where upstream's listing says "
            f"{expected[:16]}…; the bytes were dropped and are never shown. Try again; if it stays, upstream "
            "(or what stands before it) serves wrong bytes"
        )


def content_digest(size: int, chunks: Sequence[bytes]) -> str:
    """Return how the volume format names a file's content: `b3:` of its one chunk, `b3map:` of its chunkmap.

    chunks: the BLAKE3 of each of its chunks, 32 bytes each; none for an empty file
    """
    if len(chunks) == 1:
        return f"b3:{chunks[0].hex()}"
    chunkmap = chunkmap_of(size, [f"b3:{digest.hex()}" for digest in chunks])
    return f"b3map:{blake3(chunkmap).hexdigest()}"


class _Chunkmap:
    """The digest of a file's chunkmap, from the file's bytes."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._chunk, self._filled = blake3(), 0
        self._size = 0

    def update(self, data: bytes | memoryview, /) -> None:
        left = memoryview(data)
        self._size += len(left)
        while left:
            piece = left[: CHUNK_BYTES - self._filled]
            self._chunk.update(piece)
            self._filled += len(piece)
            left = left[len(piece) :]
            if self._filled == CHUNK_BYTES:
                self._chunks.append(self._chunk.digest())
                self._chunk, self._filled = blake3(), 0

    def hexdigest(self) -> str:
        chunks = [*self._chunks, self._chunk.digest()] if self._filled else self._chunks
        return content_digest(self._size, chunks).partition(":")[2]
