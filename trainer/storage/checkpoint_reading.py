"""A checkpoint's file as it is uploaded: read once, hashed on the way, and never two versions of it mixed."""

import os
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from trainer.storage.checkpoint_store import ChangedFileError, Stop


class Reading:
    """A file open to be uploaded, in pieces."""

    def __init__(self, path: Path, stopped: Stop) -> None:
        try:
            # A link that was put in its place is not followed, a pipe not waited for.
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise ChangedFileError from None
        self._stopped = stopped
        self._hasher = blake3()
        self._before = _version(self._fd)
        self.size_bytes = os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)

    @property
    def digest(self) -> str:
        return str(self._hasher.hexdigest())

    def pieces(self, piece_bytes: int) -> Iterator[bytes]:
        """Yield the file; raise ChangedFileError after its last byte where it changed on the way."""
        self._hasher = blake3()
        place = 0
        while place < self.size_bytes:
            if self._stopped():
                raise ChangedFileError
            piece = os.pread(self._fd, min(piece_bytes, self.size_bytes - place), place)
            if not piece:
                raise ChangedFileError
            self._hasher.update(piece)
            place += len(piece)
            if place == self.size_bytes:
                self.check()
            yield piece
        self.check()

    def check(self) -> None:
        """Raise ChangedFileError where the file is no longer what it was."""
        if _version(self._fd) != self._before:
            raise ChangedFileError


def _version(fd: int) -> tuple[int, int, int, int]:
    status = os.fstat(fd)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode & 0o170000
