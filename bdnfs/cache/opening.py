"""Indexes by the directory they are of: a process opens each once, however many caches use it."""

import os
import threading
from pathlib import Path

from bdnfs.cache.index import LOCK_TIMEOUT_S, Index

_open_indexes: dict[tuple[int, int, int], Index] = {}
_mutex = threading.Lock()


def open_index(directory: Path, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Index:
    """Open the directory's index, or share the one this process has open; `release` it after use.

    A broken one is moved aside. Raises CacheError when the lock isn't had in time.
    """
    status = os.stat(directory)
    key = (os.getpid(), status.st_dev, status.st_ino)
    with _mutex:
        index = _open_indexes.get(key)
        if index is None:
            index = _open_indexes[key] = Index(directory, lock_timeout_s)
        index.users += 1
        return index


def release(index: Index) -> None:
    """Close the index if nobody else in the process uses it."""
    with _mutex:
        index.users -= 1
        if index.users == 0:
            for key in [key for key, known in _open_indexes.items() if known is index]:
                del _open_indexes[key]
            index.close()
