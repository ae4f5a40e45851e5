"""The files of BT_CHECKPOINT_DIR: which there are, and which of them nobody writes to any more."""

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Version(NamedTuple):
    """What tells one content of a path from another."""

    inode: int
    size: int
    mtime_ns: int


class Found(NamedTuple):
    path: str
    version: Version


def files_below(directory: Path) -> Iterator[Found]:
    """Yield the regular files below directory; links are not followed, and what vanishes meanwhile is left out.

    What is hidden at the top (`.checkpoint-20`) is a draft of the job's, until it has another name.
    """
    pending = [directory]
    while pending:
        place = pending.pop()
        try:
            entries = list(os.scandir(place))
        except OSError as error:
            if place == directory and error.errno != errno.ENOENT:
                raise
            continue
        for entry in entries:
            if place == directory and entry.name.startswith("."):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append(Path(entry.path))
            elif stat.S_ISREG(status.st_mode):
                path = os.path.relpath(entry.path, directory)
                yield Found(path, Version(status.st_ino, status.st_size, status.st_mtime_ns))


def version_of(path: Path) -> Version | None:
    """Return the version of a file now; None where it is gone."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return Version(status.st_ino, status.st_size, status.st_mtime_ns)


def has_leases(directory: Path) -> bool:
    """Say whether is_being_written can tell anything here: a network's filesystem may refuse every lease.

    Tried with a file that has no name.
    """
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(fd)
    except OSError:
        return False
    return not _has_writer(reader)


def is_being_written(path: Path) -> bool:
    """Say whether some process has the file open for writing; only where has_leases.

    The kernel gives a read lease only on a file that nobody has open so (fcntl(2), F_SETLEASE).
    """
    try:
        return _has_writer(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return True


def _has_writer(fd: int) -> bool:
    try:
        # Who opens it for writing in the moment we have the lease has us told; SIGIO, the default, would end us.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN  # else it is another user's: its being unchanged has to do
    finally:
        os.close(fd)
    return False
