"""Everything that is missing of files, until they are whole: file by file, or, in a cluster, as all its nodes do it."""

import random
from collections import Counter
from collections.abc import Sequence

import trio

from bdnfs.cache.node import NodeCache
from bdnfs.core.ranges import chunk_range
from bdnfs.delivery.fetcher import Fetcher
from bdnfs.delivery.files import OpenFile
from bdnfs.delivery.nursery import open_nursery
from bdnfs.delivery.progress import Progress
from bdnfs.delivery.sealing import Sealer
from bdnfs.delivery.stall import Stall
from bdnfs.tiers.base import Chunk, Cluster

# Files that are filled at the same time; the fetches they share are fewer (Pace.slots).
_FILES_AT_ONCE = 64
# Files whose chunks are asked for in one order, alike on all nodes of a cluster; each is open meanwhile.
_FILES_TOGETHER = 256
_BUSY_PAUSE_S = 0.05

# A chunk of a file: its number.
Missing = tuple[OpenFile, int]


class Fill:
    """Fills files of one delivery."""

    def __init__(
        self,
        cache: NodeCache,
        fetcher: Fetcher,
        sealer: Sealer,
        progress: Progress,
        busy_timeout_s: float,
    ) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._sealer = sealer
        self._progress = progress
        self._busy_timeout_s = busy_timeout_s

    async def alone(self, files: Sequence[OpenFile]) -> None:
        """Make files whole, each from its first chunk to its last; raise the first error that stops one."""
        send, receive = trio.open_memory_channel[OpenFile](0)
        async with open_nursery() as nursery:
            for _ in range(min(_FILES_AT_ONCE, max(1, len(files)))):
                nursery.start_soon(self._files, receive.clone())
            receive.close()
            async with send:
                for file in files:
                    if not file.whole:
                        await send.send(file)

    async def together(self, files: Sequence[OpenFile], cluster: Cluster) -> None:
        """Make files whole, their chunks in the order in which the nodes that fill the same get most from each other.

        files: of a snapshot, whole ones included, for all nodes have to divide them alike
        """
        async with open_nursery() as nursery:
            nursery.start_soon(self.alone, [file for file in files if not file.ranged])
            for first in range(0, len(files), _FILES_TOGETHER):
                group = [
                    file for file in files[first : first + _FILES_TOGETHER] if file.ranged and not file.whole
                ]
                for file in group:
                    nursery.start_soon(self._sealer.finish, file)
                missing = [(file, number) for file in group for number in await self._missing(file)]
                order = await cluster.arranged(
                    [Chunk(file.revision, file.entry, number) for file, number in missing]
                )
                await self._ask([missing[place] for place in order])

    async def _files(self, files: trio.MemoryReceiveChannel[OpenFile]) -> None:
        async for file in files:
            async with open_nursery() as nursery:
                nursery.start_soon(self._sealer.finish, file)
                if file.ranged:
                    await self._ask([(file, number) for number in await self._missing(file)])
                else:
                    await self._stream(file)

    async def _stream(self, file: OpenFile) -> None:
        blob = await file.opened(self._cache)
        while not file.whole and not blob.complete:
            await self._fetcher.need(file, blob.present.find(0), demand=False)

    async def _missing(self, file: OpenFile) -> list[int]:
        blob = await file.opened(self._cache)
        missing = [number for number, present in enumerate(blob.present) if not present]
        self._progress.has(file, file.entry.size - missing_bytes(file.entry.size, missing))
        return missing

    async def _ask(self, waiting: list[Missing]) -> None:
        """Ask for every chunk; what another process is fetching is looked at again later."""
        stalls: dict[OpenFile, Stall] = {}
        while waiting:
            before = Counter(file for file, _ in waiting)
            waiting = [each for each in await self._round(waiting) if not each[0].whole]
            if not waiting:
                return
            for file, left in Counter(file for file, _ in waiting).items():
                if file not in stalls:
                    stalls[file] = Stall((await file.opened(self._cache)).path, self._busy_timeout_s)
                elif left < before[file]:
                    stalls[file].moved()
                stalls[file].check("a chunk")
            # Not the same order as everyone else: eight ranks would meet at each chunk.
            random.shuffle(waiting)
            await trio.sleep(_BUSY_PAUSE_S)

    async def _round(self, chunks: list[Missing]) -> list[Missing]:
        """Ask for each once, in order; return those that another process is at."""
        queue, busy = iter(chunks), list[Missing]()

        async def work() -> None:
            for file, number in queue:
                if not await self._fetcher.prefetch(file, number):
                    busy.append((file, number))

        async with open_nursery() as nursery:
            for _ in range(min(len(chunks), self._fetcher.fetches_max)):
                nursery.start_soon(work)
        return busy


def missing_bytes(size: int, indices: Sequence[int]) -> int:
    """Return how many bytes these chunks of a file of that size have together."""
    return sum(stop - start for start, stop in (chunk_range(size, index) for index in indices))
