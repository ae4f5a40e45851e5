"""Files of others on their way into the cache: reflinked, linked or copied, hashed, sealed.

A draft lies in `trees/`, named as the draft of a tree is: what a dead process leaves there the sweep finds.
Only what has been hashed is sealed, and the bytes hashed are those of the draft, not of what it came from.
"""

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Literal, NamedTuple

from blake3 import blake3

from bdnfs.cache.blobs import Blob
from bdnfs.cache.layout import Layout, empty
from bdnfs.cache.storage import storage_error
from bdnfs.cache.trees import draft_name
from bdnfs.cache.writers import Writers
from bdnfs.core.errors import IntegrityError, UpstreamError
from bdnfs.core.ranges import CHUNK_BYTES, chunk_count, chunk_range
from bdnfs.core.steps import reach
from bdnfs.manifest.model import FileEntry
from bdnfs.volume.digests import Digest, open_digest

How = Literal["reflink", "hardlink", "copy"]

_FICLONE = 0x40049409  # Linux: include/uapi/linux/fs.h
# Another filesystem, or one that can't; the rest is an error of the disk.
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)
_NO_LINK = (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV)
_HASH_BYTES = 1 << 20


class Sealed(NamedTuple):
    """What a verified draft is. chunks: BLAKE3 of each; digests: what its content is, by name."""

    path: Path
    size: int
    chunks: tuple[bytes, ...]
    digests: tuple[str, ...]
    inode: int
    mtime_ns: int


class Draft:
    """One file, taken from source into the cache's filesystem. how: "copy" until `seal` has copied it.

    Raises UpstreamError where the source can't be read or is no plain file of that size.
    """

    def __init__(self, source: Path, path: Path, size: int) -> None:
        self.source, self.path, self.size = source, path, size
        fd = _open_source(source, size)
        try:
            self.how: How = self._place(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Delete the draft, unless it has become a blob."""
        self.path.unlink(missing_ok=True)

    def _place(self, source_fd: int) -> How:
        if self._clone(source_fd):
            return "reflink"
        return "hardlink" if self._link(source_fd) else "copy"

    def _clone(self, source_fd: int) -> bool:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(self.path, "made", error) from error
        try:
            fcntl.ioctl(fd, _FICLONE, source_fd)
            return True
        except OSError as error:
            self.path.unlink()
            if error.errno in _NO_CLONE:
                return False
            raise storage_error(self.path, "cloned", error) from error
        finally:
            os.close(fd)

    def _link(self, source_fd: int) -> bool:
        # Sealing changes the mode and the time of what is linked: only of what is ours, in a directory of ours.
        status = os.fstat(source_fd)
        try:
            parent = os.stat(self.source.parent)
            if status.st_uid != os.geteuid() or parent.st_uid != os.geteuid():
                return False
            os.link(self.source, self.path, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINK:
                return False
            raise storage_error(self.path, "linked", error) from error
        if not os.path.samestat(os.lstat(self.path), status):
            raise UpstreamError(f"{self.source}: was replaced while it was being linked; import again")
        return True

    def seal(self, digests: tuple[str, ...], moved: Callable[[int], None]) -> Sealed:
        """Hash all of it (copying it, where it is to be a copy), check it, make it look like a blob, sync it.

        digests: `sha256:<hex>` or `git-sha1:<hex>`; without the hex it is computed, not checked.
        moved: called with how many bytes are done. Raises IntegrityError where a digest is another,
        UpstreamError where the source can't be read, CacheError or SpaceError where the disk fails.
        """
        entries = (FileEntry(str(self.source), self.size, digest) for digest in digests)
        hashes = [each for entry in entries if (each := open_digest(entry)) is not None]
        with ExitStack() as stack:
            blob, source = self._opened(), None
            stack.callback(blob.close)
            if self.how == "copy":
                source = stack.enter_context(open(_open_source(self.source, self.size), "rb", buffering=0))
            chunks = tuple(self._pieces(blob, source, hashes, moved))
            found = tuple(
                f"{digest.partition(':')[0]}:{each.hexdigest()}"
                for digest, each in zip(digests, hashes, strict=True)
            )
            self._check(digests, found)
            reach("import:verified")
            inode, mtime_ns = blob.seal()
            blob.sync()
        return Sealed(self.path, self.size, chunks, found, inode, mtime_ns)

    def _opened(self) -> Blob:
        writable = self.how == "copy"
        if not writable and os.lstat(self.path).st_size != self.size:
            raise UpstreamError(f"{self.source}: changes while it is read; import again")
        return Blob(self.path, b"", self.size, writable=writable)

    def _pieces(
        self, blob: Blob, source: FileIO | None, hashes: list[Digest], moved: Callable[[int], None]
    ) -> Iterator[bytes]:
        """Yield each chunk's BLAKE3, having fed the hashes with it, and written it where there is a source."""
        buffer = memoryview(bytearray(min(self.size, CHUNK_BYTES)))
        for number in range(chunk_count(self.size)):
            start, stop = chunk_range(self.size, number)
            piece = buffer[: stop - start]
            if source is not None:
                self._read(source, piece)
                digest = blob.write(number, piece)
            else:
                blob.read(start, piece)
                digest = blake3(piece).digest()
            for each in hashes:
                each.update(piece)
            moved(stop - start)
            yield digest

    def _read(self, source: FileIO, into: memoryview) -> None:
        try:
            while into:
                count = source.readinto(into)
                if not count:
                    raise UpstreamError(f"{self.source}: changes while it is read; import again")
                into = into[count:]
        except OSError as error:
            raise _unreadable(self.source, error) from error

    def _check(self, promised: tuple[str, ...], found: tuple[str, ...]) -> None:
        for digest, is_digest in zip(promised, found, strict=True):
            if digest.partition(":")[2] and digest != is_digest:
                raise IntegrityError(
                    f"{self.source}: its content is {is_digest}, its name says {digest.partition(':')[2]}; it was "
                    "left as it is. Delete it, and the Hub's client downloads it anew"
                )


@contextmanager
def drafts_directory(layout: Layout, writers: Writers) -> Iterator[Path]:
    """A directory for drafts, on the filesystem of the blobs; it goes with what is left in it."""
    path = layout.trees / draft_name("import", writers.own.hex())
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise storage_error(path, "made", error) from error
    try:
        yield path
    finally:
        empty(path)


def digest_of(source: Path, size: int) -> str:
    """Return the `sha256:<hex>` of a file that has no name to check; UpstreamError where it can't be read."""
    fd = _open_source(source, size)
    with open(fd, "rb", buffering=0) as file:
        found = hashlib.sha256()
        try:
            while piece := file.read(_HASH_BYTES):
                found.update(piece)
        except OSError as error:
            raise _unreadable(source, error) from error
    return f"sha256:{found.hexdigest()}"


def _open_source(source: Path, size: int) -> int:
    # A pipe that was planted must not make us wait for whoever might write to it.
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(source, error) from error
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size == size:
        return fd
    os.close(fd)
    raise UpstreamError(f"{source}: is no plain file of {size} bytes any more; import again")


def _unreadable(source: Path, error: OSError) -> UpstreamError:
    return UpstreamError(f"{source}: can't be read ({error.strerror}); check its rights and its disk")
