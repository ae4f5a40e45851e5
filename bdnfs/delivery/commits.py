"""Grouped commits: many chunks land, one index transaction publishes them."""

import trio

from bdnfs.cache.node import NodeCache
from bdnfs.cache.rows import ChunkRef, ChunkRow
from bdnfs.core.errors import BdnfsError, CacheError


class _Batch:
    def __init__(self) -> None:
        self.rows: list[tuple[ChunkRef, ChunkRow]] = []
        self.done = trio.Event()
        self.lost: frozenset[bytes] = frozenset()
        self.error: BdnfsError | None = None


class Commits:
    """Collects rows while a commit is under way; the next one takes them all."""

    def __init__(self, cache: NodeCache) -> None:
        self._cache = cache
        self._batch = _Batch()
        self._wanted = trio.Event()

    async def publish(self, ref: ChunkRef, row: ChunkRow) -> None:
        """Return once the chunk's row is committed; raise what the commit raised.

        Raises CacheError where the chunk's blob has been evicted meanwhile.
        """
        batch = self._batch
        batch.rows.append((ref, row))
        self._wanted.set()
        await batch.done.wait()
        if batch.error is not None:
            raise batch.error
        if ref.blob_id in batch.lost:
            raise CacheError(f"{ref.blob_id.hex()}: was evicted while it was being filled; try again")

    async def run(self) -> None:
        """Commit batches until cancelled; a layer's nursery runs this once."""
        while True:
            await self._wanted.wait()
            batch, self._batch, self._wanted = self._batch, _Batch(), trio.Event()
            try:
                batch.lost = await trio.to_thread.run_sync(self._cache.commit, batch.rows)
            except BdnfsError as error:
                batch.error = error
            except BaseException as error:
                batch.error = CacheError(f"the index could not be committed to ({error!r})")
                raise
            finally:
                batch.done.set()
