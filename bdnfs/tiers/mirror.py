"""The mirror as a tier: chunks by their digests, verified."""

import trio

from bdnfs.core.errors import BdnfsError, IntegrityError
from bdnfs.mirror.digests import Digests
from bdnfs.tiers.base import Chunk, Tier
from bdnfs.tiers.origin import MIRROR
from bdnfs.volume.records import digest_of


class MirrorTier:
    """Asks the mirror, in a worker thread, for one chunk at a time; a miss for files it does not hold."""

    def __init__(self, digests: Digests, threads: trio.CapacityLimiter) -> None:
        self._digests = digests
        self._threads = threads

    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        return await trio.to_thread.run_sync(
            self._get, chunk, into, abandon_on_cancel=True, limiter=self._threads
        )

    def _get(self, chunk: Chunk, into: memoryview) -> str | None:
        return MIRROR if self._digests.fill(chunk.file, chunk.number, into) else None


class Matching:
    """A tier whose bytes must be those that the mirror's version names."""

    def __init__(self, tier: Tier, digests: Digests) -> None:
        self._tier = tier
        self._digests = digests
        self._unknown: set[str] = set()  # a mirror that is away is not asked again for each chunk

    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        found = await self._tier.get(chunk, into)
        if found is not None:
            await trio.to_thread.run_sync(self._check, chunk, into)
        return found

    def _check(self, chunk: Chunk, into: memoryview) -> None:
        if chunk.file.path in self._unknown:
            return
        try:
            digests = self._digests.of(chunk.file)
        except BdnfsError:
            self._unknown.add(chunk.file.path)
            return  # the mirror can't say; upstream's digest of the whole file still has to match
        if digests is not None and digest_of(into) != digests[chunk.number]:
            raise IntegrityError(
                f"{chunk.file.path}: upstream's bytes of chunk {chunk.number} are not those that were mirrored; they "
                "were dropped. Try again; if it stays, upstream serves wrong bytes"
            )
