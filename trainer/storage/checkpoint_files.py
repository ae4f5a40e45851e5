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


def is_being_written(path: Path) -> bool:
    """Say whether some process has the file open for writing, as far as its filesystem can tell.

    The kernel gives a read lease only on a file that nobody has open so (fcntl(2), F_SETLEASE).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        # Who opens it for writing in the moment we have the lease has us told; SIGIO, the default, would end us.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN  # else there are no leases here: its being unchanged has to do
    finally:
        os.close(fd)
    return False
