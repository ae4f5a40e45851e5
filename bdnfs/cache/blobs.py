"""A blob: one file version in one sparse file, filled in place, chunk by chunk."""

import ctypes
import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from bdnfs.cache.layout import check_directory
from bdnfs.cache.locks import is_same_file, try_lock, unlock
from bdnfs.cache.storage import storage_error
from bdnfs.core.errors import CacheError, IntegrityError
from bdnfs.core.ranges import CHUNK_BYTES, chunk_count, chunk_range, chunks_of
from bdnfs.core.units import TREE_MTIME_S
from bdnfs.manifest.model import FileEntry

FILE_MODE = 0o444

_libc = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # Linux: include/uapi/linux/falloc.h
# Some sandboxes have no sync_file_range(2): there only a sync tells.
_NOT_ASKED = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ESPIPE)
_WAIT_BEFORE = 1  # Linux: include/uapi/linux/fs.h, SYNC_FILE_RANGE_WAIT_BEFORE

# Beyond any file: the byte whose lock says "I verify and seal this blob".
_SEAL_BYTE = 1 << 62


def alias_name(tenant: str, digest: str) -> str:
    """Return the name that a tenant's verified content is found by."""
    return f"{tenant}\0{digest}" if tenant else digest


def blob_id(origin: str, file: FileEntry, salt: str = "", tenant: str = "") -> bytes:
    """Return the id of a file version that nobody has verified yet: it includes its origin.

    With a digest the path does not matter (a file keeps its blob from one commit to the next);
    without, the path and upstream's identity for it do. salt: makes it one window's own; tenant: a tenant's.
    """
    version = file.digest or f"{file.path}\0{file.identity}"
    origin = f"{tenant}\0{origin}" if tenant else origin
    return blake3(f"{origin}\0{version}\0{file.size}{salt}".encode()).digest()


class Blob:
    """One open blob. present[i] is 1 once chunk i may be read; chunks are never taken back.

    The descriptor goes with the last reference: a thread that reads can't have its number taken
    from under it. `close` is for whoever has the only one. failed: a sync has failed, so what was
    written lately may never reach the disk.

    The kernel tells of a write error once for each open of the file: `sync` has one for itself, which one thread at a
    time uses, and `has_lost` another.
    """

    fd = _asking_fd = -1

    def __init__(self, path: Path, blob_id: bytes, size: int, *, writable: bool, create: bool = True) -> None:
        """Open it, or make it where it is missing (writable and create).

        Raises FileNotFoundError where it is missing and not to be made, CacheError where it isn't
        a file of ours of that size, SpaceError on a full disk.
        """
        self.path = path
        self.id = blob_id
        self.size = size
        self.writable = writable
        self.failed = False
        self._lost_errno = errno.EIO
        self._syncing, self._asking = threading.Lock(), threading.Lock()
        self.present = bytearray(chunk_count(size))
        self.fd = _open(path, size, writable, create and writable)
        status = os.fstat(self.fd)
        if writable:  # before the first write, so that it sees every error
            self._asking_fd = _open_again(self.fd, path)
        if status.st_uid != os.geteuid() or status.st_size != size:
            self.close()
            raise CacheError(
                f"{path}: has {status.st_size} bytes of uid {status.st_uid} where {size} of uid {os.geteuid()} "
                "belong; run `bdnfs cache verify`"
            )

    def close(self) -> None:
        for fd in (self.fd, self._asking_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._asking_fd = -1

    def __del__(self) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        return 0 not in self.present

    def has(self, start: int, stop: int) -> bool:
        """Say whether all of [start, stop) is present."""
        return all(self.present[index] for index in chunks_of(start, stop))

    def claim(self, index: int) -> bool:
        """Take the chunk's byte range for this process; False where another has it.

        Raises CacheError where the blob's file is no longer the one at its path.
        """
        self._check_writable()
        if not try_lock(self.fd, exclusive=True, start=index * CHUNK_BYTES, length=CHUNK_BYTES):
            return False
        if not self.is_current():
            self.release(index)
            raise CacheError(f"{self.path}: was evicted while it was being filled; try again")
        return True

    def release(self, index: int) -> None:
        if self.fd >= 0:
            unlock(self.fd, start=index * CHUNK_BYTES, length=CHUNK_BYTES)

    def claim_seal(self) -> bool:
        self._check_writable()
        return try_lock(self.fd, exclusive=True, start=_SEAL_BYTE, length=1)

    def release_seal(self) -> None:
        if self.fd >= 0:
            unlock(self.fd, start=_SEAL_BYTE, length=1)

    def _check_writable(self) -> None:
        if not self.writable:  # it was whole when it was opened, and isn't any more
            raise CacheError(f"{self.path}: was found damaged while it was in use; try again")

    def is_current(self) -> bool:
        """Say whether the file is still linked, and the one found at its path."""
        return is_same_file(self.fd, self.path)

    def write(self, index: int, data: memoryview, digest: bytes | None = None) -> bytes:
        """Write one whole chunk; return its BLAKE3. Raises SpaceError on a full disk.

        digest: its BLAKE3, where data was just checked against it
        """
        start, stop = chunk_range(self.size, index)
        if len(data) != stop - start:
            raise IntegrityError(f"{self.path}: chunk {index} came with {len(data)} of {stop - start} bytes")
        digest = digest or blake3(data).digest()
        try:
            while data:
                written = os.pwrite(self.fd, data, start)
                start, data = start + written, data[written:]
        except OSError as error:
            raise storage_error(self.path, "written", error) from error
        return digest

    def punch(self, index: int) -> None:
        """Give a chunk's disk space back; nobody may be reading it."""
        start, stop = chunk_range(self.size, index)
        punch_hole(self.fd, start, stop - start)

    def read_now(self, offset: int, into: memoryview) -> bool:
        """Fill `into` from memory; False where the disk would have to be waited for."""
        try:
            return os.preadv(self.fd, [into], offset, os.RWF_NOWAIT) == len(into)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return False
            raise storage_error(self.path, "read", error) from error

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`; blocking. Raises CacheError on a read error."""
        try:
            while into:
                count = os.preadv(self.fd, [into], offset)
                if count == 0:
                    raise CacheError(f"{self.path}: ends at {offset}, {self.size} bytes belong there")
                offset, into = offset + count, into[count:]
        except OSError as error:
            raise storage_error(self.path, "read", error) from error

    def digest(self, index: int, buffer: memoryview) -> bytes:
        """Return the BLAKE3 of chunk index as the file has it now; buffer holds a chunk."""
        start, stop = chunk_range(self.size, index)
        self.read(start, buffer[: stop - start])
        return blake3(buffer[: stop - start]).digest()

    def drop_pages(self) -> None:
        """Forget the file's clean pages, so that the next read sees the disk."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def has_lost(self) -> bool:
        """Say whether something written has been lost on its way to the disk, as far as the kernel knows.

        What was lost reads as zeros once memory lets go of it, and no read says so: whoever reads what
        is not synced asks this afterwards. Takes a microsecond, and waits for nothing.
        """
        with self._asking:  # who asks second must not be told sooner that all is well
            if not self.failed:
                code = self._told_lost()
                if code:
                    self.failed, self._lost_errno = True, code
            return self.failed

    def _told_lost(self) -> int:
        """Return the errno of a write that was lost since the last time, 0 for none."""
        # No page lies beyond the end: all that this looks at is the file's write error.
        beyond = ctypes.c_int64((self.size | 0xFFFFF) + 1)
        fd = self._asking_fd if self._asking_fd >= 0 else self.fd
        failed = _libc.sync_file_range(fd, beyond, ctypes.c_int64(1), _WAIT_BEFORE) != 0
        code = ctypes.get_errno()
        return code if failed and code not in _NOT_ASKED else 0

    def check_written(self) -> None:
        """Raise CacheError or SpaceError where something written has been lost."""
        if self.has_lost():
            code = self._lost_errno
            raise storage_error(self.path, "synced", OSError(code, os.strerror(code)))

    def sync(self) -> None:
        """Bring every written byte to the disk; raise CacheError when that fails (it shows once)."""
        with self._syncing:
            self.check_written()
            try:
                os.fsync(self.fd)
            except OSError as error:
                self.failed, self._lost_errno = True, error.errno or errno.EIO
                raise storage_error(self.path, "synced", error) from error

    def settle(self) -> None:
        """Bring what a dead writer left to the disk, before anything is written here.

        An error of that time is nobody's any more, and would be taken for ours at our first sync. What
        it has lost shows when the dead one's chunks are rehashed.
        """
        with suppress(OSError):
            os.fsync(self.fd)
        self._told_lost()

    def seal(self) -> tuple[int, int]:
        """Make the file look as it does in every tree; return its inode and mtime_ns."""
        try:
            os.fchmod(self.fd, FILE_MODE)
            os.utime(self.fd, (TREE_MTIME_S, TREE_MTIME_S))
            status = os.fstat(self.fd)
        except OSError as error:
            raise storage_error(self.path, "sealed", error) from error
        return status.st_ino, status.st_mtime_ns


def _open_again(fd: int, path: Path) -> int:
    """Return another open of fd's very file, whatever is at its path by now."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(path, "opened", error) from error


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Deallocate a range of a file without changing its size (fallocate(2))."""
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        if code == errno.EOPNOTSUPP:
            raise CacheError("the cache's filesystem can't punch holes, so --no-fill is not to be had on it")
        raise CacheError(f"a chunk's space can't be given back ({os.strerror(code)}); check the disk")


def _open(path: Path, size: int, writable: bool, create: bool) -> int:
    # A pipe that was planted must not make us wait; to a plain file it makes no difference.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if create:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            check_directory(path.parent)
        try:
            fd = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
        except PermissionError:
            # Sealed by a process that died before it could publish.
            os.chmod(path, 0o600)
            fd = os.open(path, flags)
        if create and os.fstat(fd).st_size != size:
            try:
                os.ftruncate(fd, size)
            except BaseException:
                os.close(fd)
                raise
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(path, "made" if create else "opened", error) from error
    return fd
