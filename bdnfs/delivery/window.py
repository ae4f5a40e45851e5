"""`--lazy --no-fill`: a window onto a snapshot larger than the disk, kept chunk by chunk.

A window's blobs belong to one daemon alone (their ids are salted), so that a chunk taken back
here is never being read anywhere else. What is whole on the node already is read from there.
A reader holds one chunk at a time: readers that held one and waited for another would starve
each other. And a window has room for one chunk from its opening on, its floor: other windows and
other snapshots may take the rest of the cache, and it still goes on.
"""

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import trio

from bdnfs.cache.blobs import Blob
from bdnfs.cache.node import NodeCache
from bdnfs.cache.rows import ChunkRef
from bdnfs.core.ranges import chunk_range
from bdnfs.core.steps import reach
from bdnfs.delivery.files import OpenFile


class Window:
    """Charges each chunk before it is fetched, and takes back those read longest ago."""

    def __init__(self, cache: NodeCache, floor: bytes | None) -> None:
        """floor: the blob on which room for one chunk is charged already; None where nothing will come."""
        self._cache = cache
        self._floor = floor
        self._on_floor: ChunkRef | None = None
        self._kept: OrderedDict[ChunkRef, Blob] = OrderedDict()  # least recently read first
        self._in_use: Counter[ChunkRef] = Counter()
        self._leaving: set[ChunkRef] = set()
        self._changed = trio.Event()
        self._reserving = trio.Lock()

    @contextmanager
    def reading(self, file: OpenFile, index: int) -> Iterator[None]:
        """Keep this chunk while it is being read, and count it as read now."""
        ref = ChunkRef(file.blob_id, index)
        self._in_use[ref] += 1
        try:
            yield
        finally:
            self._in_use[ref] -= 1
            if not self._in_use[ref]:
                del self._in_use[ref]
            if ref in self._kept:
                self._kept.move_to_end(ref)
            self._wake()

    async def settled(self, ref: ChunkRef) -> None:
        """Return once the chunk is not being taken back: until then its row is still there, its bytes may not be."""
        while ref in self._leaving:
            await self._changed.wait()

    async def fetch(
        self, file: OpenFile, blob: Blob, index: int, fetch: Callable[[], Awaitable[None]]
    ) -> None:
        """Charge the chunk, then fetch it; it is the window's from then on, or its charge is gone again."""
        ref = ChunkRef(file.blob_id, index)
        await self._reserve(file, ref)
        try:
            await fetch()
            self._kept[ref] = blob
        except BaseException:
            blob.present[index] = 0
            with trio.CancelScope(shield=True):
                await self._take_back([(ref, blob)])
            raise
        finally:
            self._wake()

    async def _reserve(self, file: OpenFile, ref: ChunkRef) -> None:
        """Charge the chunk: from what is free, on the floor, in the place of our own, then of other snapshots."""
        start, stop = chunk_range(file.entry.size, ref.number)
        size = stop - start
        async with self._reserving:
            while not await self._charge(file, size, evict=False):
                if self._floor is not None and self._on_floor is None:
                    self._on_floor = ref
                    try:
                        await trio.to_thread.run_sync(self._cache.move_window, self._floor, ref.blob_id, size)
                    except BaseException:
                        self._on_floor = None
                        raise
                    return
                victims = self._victims(size)
                if victims:
                    await self._take_back(victims)
                elif await self._charge(file, size, evict=True):
                    return
                elif all(kept in self._in_use for kept in self._kept):  # still, after all this awaiting
                    await self._changed.wait()

    async def _charge(self, file: OpenFile, size: int, *, evict: bool) -> bool:
        reserve = partial(self._cache.reserve_window, file.blob_id, size, evict=evict)
        return await trio.to_thread.run_sync(reserve)

    def _victims(self, size: int) -> list[tuple[ChunkRef, Blob]]:
        """Choose chunks to take back, and hide them from readers; decided without awaiting."""
        victims: list[tuple[ChunkRef, Blob]] = []
        for ref, blob in self._kept.items():
            if size <= 0:
                break
            if ref not in self._in_use:
                victims.append((ref, blob))
                start, stop = chunk_range(blob.size, ref.number)
                size -= stop - start
        for ref, blob in victims:
            del self._kept[ref]
            self._leaving.add(ref)
            blob.present[ref.number] = 0
        return victims

    async def _take_back(self, victims: list[tuple[ChunkRef, Blob]]) -> None:
        try:
            await trio.to_thread.run_sync(self._give_back, victims)
        finally:
            self._leaving.difference_update(ref for ref, _ in victims)
            if any(ref == self._on_floor for ref, _ in victims):
                self._on_floor = None
            self._wake()

    def _give_back(self, chunks: list[tuple[ChunkRef, Blob]]) -> None:
        """Free the chunks' space, then their charge: never more on the disk than is charged."""
        try:
            for ref, blob in chunks:
                blob.punch(ref.number)
            reach("window:punched")
        finally:
            floor = (self._on_floor, self._floor) if self._on_floor and self._floor else None
            self._cache.release_window([ref for ref, _ in chunks], floor)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
