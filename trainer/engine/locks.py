"""File locks that say who is alive: of an open file, not of a pid, so they go with their last holder, however it ends.

None is ever waited for in the kernel: try, and look again until a deadline.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import HomeError

_POLL_S = 0.02


def try_lock(path: Path) -> int | None:
    """Take the lock on path; return the descriptor that holds it until it is closed, or None: another has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_held(path: Path) -> bool:
    """Say whether somebody holds the lock on path; a file that is not there is held by nobody."""
    if not path.exists():
        return False
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        # Shared: two that look at once don't take each other for holders.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def wait_lock(path: Path, timeout_s: float) -> int | None:
    """Take the lock on path as `try_lock` does; None: for timeout_s another has had it."""
    deadline_s = time.monotonic() + timeout_s
    while (fd := try_lock(path)) is None and time.monotonic() <= deadline_s:
        time.sleep(_POLL_S)
    return fd


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock on path; raise HomeError where it is not to be had in timeout_s."""
    fd = wait_lock(path, timeout_s)
    if fd is None:
        raise HomeError(f"{path}: another process has held this for {timeout_s:g} s; is it stopped?")
    try:
        yield
    finally:
        os.close(fd)
