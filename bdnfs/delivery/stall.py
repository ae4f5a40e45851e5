"""Waiting for another process: as long as it gets on, and not for ever."""

from pathlib import Path

import trio

from bdnfs.cache.locks import who_holds
from bdnfs.core.errors import CacheError

# Longer than any fetch with all its tries; a process that is stopped, or hangs, is what this finds.
BUSY_TIMEOUT_S = 900.0


class Stall:
    """How long another process that holds a part of a blob has not moved."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._since_s = trio.current_time()

    def moved(self) -> None:
        """Something new is there: the wait begins anew."""
        self._since_s = trio.current_time()

    def check(self, what: str) -> None:
        """Raise CacheError, naming who has the blob open, once nothing has moved for the timeout."""
        if trio.current_time() - self._since_s >= self._timeout_s:
            who = who_holds(self._path)
            raise CacheError(
                f"{self._path}: another process has been at {what} of it for {self._timeout_s:g} s without getting "
                f"on; one of these: {who}. Is it stopped? Continue or end it, then try again"
            )
