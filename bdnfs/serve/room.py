"""Room in memory: who needs some waits until it is free, first come, first served."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from bdnfs.core.errors import DeadlineError

# Less than the minute that the official client waits for an answer.
WAIT_S = 40.0


class Room:
    """size bytes to be shared out. What needs more than there is gets all of it."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._turn = trio.StrictFIFOLock()
        self._freed = trio.Event()

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Hold size bytes of the room; raise DeadlineError where others hold it all the while."""
        size = min(size, self._size)
        with trio.move_on_after(WAIT_S) as waiting:
            await self._take(size)
        if waiting.cancelled_caught:
            raise DeadlineError(f"too many objects are being read at once: none ended within {WAIT_S:g} s")
        try:
            yield
        finally:
            self._free += size
            self._freed.set()

    async def _take(self, size: int) -> None:
        # Whoever has the turn waits for its room, the others for their turn: a large one is not overtaken.
        async with self._turn:
            while self._free < size:
                self._freed = trio.Event()
                await self._freed.wait()
            self._free -= size
