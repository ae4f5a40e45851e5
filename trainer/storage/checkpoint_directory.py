"""Checkpoints in a directory: on another disk, or a network's."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from trainer.storage.checkpoint_reading import Reading
from trainer.storage.checkpoint_store import Stop, Stored
from trainer.storage.errors import StoreAwayError, StoreError

_PIECE_BYTES = 8 << 20
_DRAFTS = ".drafts"


class DirectoryStore:
    """Files below one directory. A file is written beside, synced, then renamed to its place."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.name = str(directory)
        self.source = f"file://{directory}"

    def put_file(self, key: str, path: Path, stopped: Stop) -> str:
        reading = Reading(path, stopped)
        try:
            with _meaning(f"writing {key} to {self.name}"):
                self._write(key, reading.pieces(_PIECE_BYTES))
            return reading.digest
        finally:
            reading.close()

    def get_file(self, key: str, path: Path, size_bytes: int) -> str:
        hasher = blake3()
        doing = f"reading {key} of {self.name}"
        with _meaning(doing):
            source = (self._directory / key).open("rb")
        with source, path.open("xb") as target:
            while piece := source.read(_PIECE_BYTES):
                hasher.update(piece)
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        return str(hasher.hexdigest())

    def put(self, key: str, data: bytes) -> None:
        with _meaning(f"writing {key} to {self.name}"):
            self._write(key, iter([data]))

    def get(self, key: str) -> bytes | None:
        with _meaning(f"reading {key} of {self.name}"):
            try:
                return (self._directory / key).read_bytes()
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[Stored]:
        with _meaning(f"listing {self.name}"):
            for place, _, names in os.walk(self._directory / prefix):
                for name in sorted(names):
                    path = Path(place, name)
                    yield Stored(path.relative_to(self._directory).as_posix(), path.stat().st_size)

    def delete(self, prefix: str) -> None:
        with _meaning(f"deleting {prefix} of {self.name}"):
            if (self._directory / prefix).exists():
                shutil.rmtree(self._directory / prefix)

    def _write(self, key: str, pieces: Iterator[bytes]) -> None:
        target = self._directory / key
        drafts = self._directory / _DRAFTS
        drafts.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = drafts / secrets.token_hex(16)
        try:
            with draft.open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            new = [place for place in target.parents if place != self._directory and not place.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(target)
        finally:
            draft.unlink(missing_ok=True)
        # A directory that was made is lost with its parent's entry.
        for place in {target.parent, *(made.parent for made in new)}:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


@contextmanager
def _meaning(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = f"{doing}: {error.strerror or error}"
        if error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EIO,
            errno.ESTALE,
            errno.ETIMEDOUT,
            errno.ENOTCONN,
        ):
            raise StoreAwayError(f"{said}; free space there, or mend it, and it goes on") from None
        raise StoreError(f"{said}; check the directory and its rights") from None
