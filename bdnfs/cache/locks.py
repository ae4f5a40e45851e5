"""Open-file-description locks: between processes, across PID namespaces, gone with their holder.

An OFD lock belongs to the open file description, so two opens in one process exclude each
other too, and kill -9 of the holder frees it at once. Never blocks: try, or try until a
deadline (a blocked F_OFD_SETLKW does not even end when its fd is closed).
"""

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from bdnfs.cache.storage import storage_error
from bdnfs.core.errors import CacheError

# Linux: include/uapi/asm-generic/fcntl.h.
F_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, len, pid
WHOLE_FILE = 0  # l_len = 0 reaches to the end of the file, however far it grows


def try_lock(fd: int, *, exclusive: bool, start: int = 0, length: int = WHOLE_FILE) -> bool:
    """Lock [start, start + length) of fd; return False where another description holds it.

    An exclusive lock needs fd open for writing. Locking again changes the kind. Raises
    CacheError where the filesystem has no such locks.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise CacheError(
            f"a file of the cache can't be locked ({error.strerror}); the cache needs a local filesystem: "
            "name another directory with cache.directory in the config or BDNFS_CACHE_DIR"
        ) from error
    return True


def unlock(fd: int, *, start: int = 0, length: int = WHOLE_FILE) -> None:
    """Let [start, start + length) of fd go."""
    fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, length, 0))


def lock_until(fd: int, *, exclusive: bool, deadline_s: float) -> bool:
    """Try for the whole file until deadline_s (of time.monotonic) has passed."""
    pause_s = 0.0005
    while not try_lock(fd, exclusive=exclusive):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.02)
    return True


def open_lock_file(path: Path) -> int:
    """Open (or make) a lock file that no child inherits and no symlink redirects.

    Raises SpaceError on a full disk, CacheError where it can't be opened, or has a second name
    somewhere: what is written to it would be written there, too.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise storage_error(path, "opened", error) from error
    if os.fstat(fd).st_nlink > 1:
        os.close(fd)
        raise CacheError(f"{path}: is a hard link to a file elsewhere; move it away, then try again")
    return fd


def is_same_file(fd: int, path: Path) -> bool:
    """Say whether path still names the file that fd is."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Say whether somebody holds the lock on path exclusively; a missing file is not held, nor is a symlink."""
    return _is_locked(path, exclusive=False)


def is_used(path: Path) -> bool:
    """Say whether somebody holds the lock on path in any way; a missing file is not held."""
    return _is_locked(path, exclusive=True)


def _is_locked(path: Path, *, exclusive: bool) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise storage_error(path, "opened", error) from error
    try:
        return not try_lock(fd, exclusive=exclusive)
    finally:
        os.close(fd)


def holders(path: Path) -> list[str]:
    """Name the processes that have path open, as `python (pid 123)`; what can't be seen is left out."""
    return [
        f"{comm} (pid {pid}{', stopped' if _is_stopped(pid) else ''})" for pid, comm in openers(path).items()
    ]


def who_holds(path: Path) -> str:
    """Name, for a message, who may hold the lock on path."""
    return ", ".join(holders(path)) or "a process that can't be seen from here"


def openers(path: Path) -> dict[int, str]:
    """Return the processes that have path open: their names by pid. This one is left out."""
    return dict(_openers(path))


def _openers(path: Path) -> Iterator[tuple[int, str]]:
    target = os.path.realpath(path)
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            if any(os.readlink(f"/proc/{name}/fd/{fd}") == target for fd in os.listdir(f"/proc/{name}/fd")):
                yield int(name), Path(f"/proc/{name}/comm").read_text().strip()
        except OSError:
            continue


def _is_stopped(pid: int) -> bool:
    try:
        # The name before it may hold spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False
