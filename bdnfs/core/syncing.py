"""The one call that Python has no name for: a whole filesystem brought to its disk."""

import ctypes
import os


def syncfs(fd: int) -> None:
    """Return once all that was written to fd's filesystem is on its disk; raise OSError if some is lost."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
