"""The last tier: the origin itself."""

import trio

from bdnfs.origins.base import Origin
from bdnfs.origins.ranges import read_range
from bdnfs.tiers.base import Chunk
from bdnfs.volume.digests import check_digest, open_digest

# The tiers' names, as progress and `plan` have them.
ORIGIN, MIRROR, PEER = "origin", "mirror", "peer"


class OriginTier:
    """Asks the origin, in a worker thread, for one chunk at a time.

    A file of one chunk is checked against upstream's digest here; a longer one when all of it
    is there, because upstream has no digests of chunks.
    """

    def __init__(self, origin: Origin, threads: trio.CapacityLimiter, name: str = ORIGIN) -> None:
        self.origin = origin
        self._threads = threads
        self._name = name

    async def get(self, chunk: Chunk, into: memoryview) -> str:
        await trio.to_thread.run_sync(self._get, chunk, into, abandon_on_cancel=True, limiter=self._threads)
        return self._name

    def _get(self, chunk: Chunk, into: memoryview) -> None:
        read_range(self.origin, chunk.revision, chunk.file, chunk.range[0], into)
        if chunk.file.chunks == 1:
            found = open_digest(chunk.file)
            if found is not None:
                found.update(into)
                check_digest(chunk.file, found, self.origin.name)
