"""A pin forbids eviction. It is a fact, never a pid: a held lock, a mount, or a date not yet past.

Whoever fills, serves or runs a snapshot holds the shared lock on `pins/<snapshot id>`, and takes it
before looking at the index. The evictor tries it while it holds the index: a pin it doesn't find is
of somebody who will find the snapshot gone. A native mount needs nobody: the evictor finds it in the
mount tables of every namespace.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bdnfs.cache.layout import Layout
from bdnfs.cache.locks import holders, is_same_file, is_used, lock_until, open_lock_file, try_lock


class MountScan(Protocol):
    """Every mount of every namespace that can be seen from here."""

    @property
    def complete(self) -> bool:
        """False where a namespace couldn't be read: then everything counts as mounted."""
        ...

    def has_root(self, suffix: str) -> bool:
        """Say whether a mount's root ends with suffix."""
        ...


Scanner = Callable[[], MountScan]


class Pin:
    """The shared lock on a snapshot's pin file, held until closed or until the process ends."""

    def __init__(self, path: Path, deadline_s: float) -> None:
        while True:
            self._fd = open_lock_file(path)
            try:
                held = lock_until(self._fd, exclusive=False, deadline_s=deadline_s)
                # An evictor may have deleted the file between the open and the lock.
                if held and is_same_file(self._fd, path):
                    return
            except BaseException:
                self.close()
                raise
            self.close()
            if not held:
                raise TimeoutError(str(path))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def mounted(scan: MountScan, name: str, place: str = "trees") -> bool:
    """Say whether the tree of that name, lying in `trees` or `trash`, is some mount's root."""
    return not scan.complete or scan.has_root(f"/{place}/{name}")


def is_pinned(layout: Layout, snapshot_id: str) -> bool:
    """Say whether somebody holds the snapshot's pin file; the caller holds the index."""
    return is_used(layout.pins / snapshot_id)


def remove_pin_file(layout: Layout, snapshot_id: str) -> None:
    """Delete the pin file of a snapshot that is gone, unless somebody just took it."""
    path = layout.pins / snapshot_id
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if try_lock(fd, exclusive=True) and is_same_file(fd, path):
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def pinned_by(layout: Layout, snapshot_id: str) -> list[str]:
    """Name the processes that hold the snapshot's pin file open."""
    return holders(layout.pins / snapshot_id)
