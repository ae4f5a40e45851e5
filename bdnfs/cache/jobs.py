"""Which jobs run on this node: a locked file in `jobs/` for each, gone with its process however that ends."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bdnfs.cache.layout import check_directory
from bdnfs.cache.locks import is_held, is_same_file, open_lock_file, try_lock
from bdnfs.core.errors import BdnfsError


@contextmanager
def job_here(root: Path) -> Iterator[None]:
    """Say, for as long as the block runs, that a job runs on this node: serving others yields to it.

    root: the cache's directory. Where it can't be said the job runs all the same.
    """
    path, fd = root / "jobs" / secrets.token_hex(8), -1
    with suppress(BdnfsError, OSError):
        fd = _marked(path)
    try:
        yield
    finally:
        if fd >= 0:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(fd)


def _marked(path: Path) -> int:
    path.parent.mkdir(exist_ok=True, mode=0o700)
    check_directory(path.parent)
    while True:
        fd = open_lock_file(path)
        # Whoever looks may have found it between the two lines, not yet locked, and deleted it.
        if try_lock(fd, exclusive=True) and is_same_file(fd, path):
            return fd
        os.close(fd)


def is_job_here(root: Path) -> bool:
    """Say whether a job runs on this node; what dead ones left is deleted. Blocking, for microseconds."""
    directory, found = root / "jobs", False
    with suppress(BdnfsError, OSError):
        for name in os.listdir(directory):
            if is_held(directory / name):
                found = True
            else:
                (directory / name).unlink(missing_ok=True)
    return found
