"""Checkpoints wherever fsspec can write: sftp, gs, a network's own store."""

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from blake3 import blake3

from trainer.errors import ConfigError, TrainerError
from trainer.storage.checkpoint_reading import Reading
from trainer.storage.checkpoint_store import ChangedFileError, Stop, Stored
from trainer.storage.errors import StoreAwayError, StoreError

T = TypeVar("T")
_PIECE_BYTES = 16 << 20
# What fails is told by our errors; its log tells what it tried on the way, too.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
_DRAFTS = ".drafts"
# A piece on a line that gives it 100 kB/s.
_REQUEST_TIMEOUT_S, _CONNECT_TIMEOUT_S = 180.0, 10.0


class FsspecStore:
    """Files below a URL. A file is written elsewhere below it, then moved to its place."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url, self._options = url.rstrip("/"), options
        self._opened: tuple[Any, str] | None = None
        self.name = self.source = self._url
        scheme = url.partition("://")[0]
        if scheme not in fsspec.available_protocols():
            raise ConfigError(
                f"checkpoints: nothing here opens {scheme}://; write s3://bucket/prefix or /a/directory"
            )

    def put_file(self, key: str, path: Path, stopped: Stop) -> str:
        reading = Reading(path, stopped)
        try:
            self._write(key, reading.pieces(_PIECE_BYTES))
            return reading.digest
        finally:
            reading.close()

    def get_file(self, key: str, path: Path, size_bytes: int) -> str:
        hasher = blake3()
        doing = f"reading {key} of {self.name}"
        source = self._call(doing, lambda fs, top: fs.open(f"{top}/{key}", "rb"))
        with source, path.open("xb") as target:
            while piece := self._call(doing, lambda fs, top: source.read(_PIECE_BYTES)):
                hasher.update(piece)
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        return str(hasher.hexdigest())

    def put(self, key: str, data: bytes) -> None:
        self._write(key, iter([data]))

    def get(self, key: str) -> bytes | None:
        def get(fs: Any, top: str) -> bytes | None:
            try:
                return bytes(fs.cat_file(f"{top}/{key}"))
            except FileNotFoundError:
                return None

        return self._call(f"reading {key} of {self.name}", get)

    def list(self, prefix: str) -> Iterator[Stored]:
        def list_all(fs: Any, top: str) -> list[Stored]:
            fs.invalidate_cache()
            found = fs.find(f"{top}/{prefix}".rstrip("/"), detail=True)
            return [Stored(path[len(top) + 1 :], int(info["size"])) for path, info in found.items()]

        yield from self._call(f"listing {self.name}", list_all)

    def delete(self, prefix: str) -> None:
        def delete(fs: Any, top: str) -> None:
            fs.invalidate_cache()
            if fs.exists(f"{top}/{prefix}".rstrip("/")):
                fs.rm(f"{top}/{prefix}".rstrip("/"), recursive=True)

        self._call(f"deleting {prefix} of {self.name}", delete)

    def _write(self, key: str, pieces: Iterator[bytes]) -> None:
        write = self._write_object if self._url.startswith("gs://") else self._write_file
        self._call(f"writing {key} to {self.name}", lambda fs, top: write(fs, top, key, pieces))

    def _write_file(self, fs: Any, top: str, key: str, pieces: Iterator[bytes]) -> None:
        target, draft = f"{top}/{key}", f"{top}/{_DRAFTS}/{secrets.token_hex(16)}"
        for path in (target, draft):
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            with fs.open(draft, "wb") as file:
                for piece in pieces:
                    file.write(piece)
            fs.mv(draft, target)
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong first is what is told
                fs.rm(draft)
            raise

    def _write_object(self, fs: Any, top: str, key: str, pieces: Iterator[bytes]) -> None:
        """Where nothing shows before the upload is ended, and a move is a copy."""
        file = fs.open(f"{top}/{key}", "wb", autocommit=False)
        try:
            for piece in pieces:
                file.write(piece)
            file.close()
            file.commit()
        except BaseException:
            # Its destructor would end the upload, and show what there is of it. Left alone the store forgets it within
            # a week; to take it back would be tried for half a minute where that can't be reached.
            file.closed = True
            raise

    def _open(self) -> tuple[Any, str]:
        if not self._url.startswith("gs://"):
            fs, top = fsspec.core.url_to_fs(self._url, **self._options)
            return fs, str(top).rstrip("/")
        import aiohttp
        from gcsfs.core import GCSFileSystem

        # The one that gcsfs registers asks by gRPC which kind of bucket this is: minutes where only HTTPS gets by.
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S, sock_connect=_CONNECT_TIMEOUT_S)
        fs = GCSFileSystem(requests_timeout=timeout, use_listings_cache=False, **self._options)
        return fs, self._url.removeprefix("gs://")

    def _call(self, doing: str, act: Callable[[Any, str], T]) -> T:
        try:
            if self._opened is None:
                self._opened = self._open()
            return act(*self._opened)
        except (TrainerError, ChangedFileError):
            raise
        except ImportError as error:
            hint = ": pip install 'bdnfs[gcs]'" if self._url.startswith("gs://") else ""
            raise StoreError(f"{doing}: {error.name or 'what opens it'} is not installed{hint}") from None
        except (FileNotFoundError, PermissionError) as error:
            raise StoreError(
                f"{doing}: {type(error).__name__}; check the URL of `checkpoints` and rights"
            ) from None
        except Exception as error:  # every filesystem raises its own; the text may hold what was given
            if _is_refusal(error):
                raise StoreError(f"{doing}: the store refused the credentials; check them") from None
            raise StoreAwayError(f"{doing}: {type(error).__name__}; try again later") from None


def _is_refusal(error: Exception) -> bool:
    """Say whether gcsfs means that the store knows us and does not let us: it has no class for that."""
    if getattr(error, "code", None) in (401, 403) or str(error).startswith("Forbidden: "):
        return True
    return type(error).__name__ == "RefreshError" and not getattr(error, "retryable", False)
