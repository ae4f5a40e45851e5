"""Bytes into the mirror: straight from an origin, or on the way of a fill and from what the node has.

origin ─▶ OriginTier (threads) ─▶ Retry (pace) ─▶ buffers ─┬▶ put if absent
                                                           └▶ upstream's digest, in the file's order
"""

from collections.abc import Callable, Iterator
from typing import Any

import trio

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import BdnfsError, IntegrityError
from bdnfs.core.progress import Counters
from bdnfs.core.ranges import CHUNK_BYTES, chunk_range
from bdnfs.delivery.cutting import chunks_of_stream
from bdnfs.delivery.nursery import open_nursery
from bdnfs.manifest.model import FileEntry
from bdnfs.mirror.held import version_key
from bdnfs.mirror.ingest import Ingest
from bdnfs.mirror.versions import VersionRow
from bdnfs.origins.base import Origin
from bdnfs.spec.config import UpstreamConfig
from bdnfs.tiers.base import Chunk, Tier
from bdnfs.tiers.origin import ORIGIN, OriginTier
from bdnfs.tiers.retry import Pace, Retry, retrying
from bdnfs.volume.digests import check_digest, open_digest

# Files whose digests are computed side by side: one core each.
_FILES_AT_ONCE = 4


class _File:
    """One file under way: the digests of its chunks, and how far upstream's digest has come."""

    def __init__(self, entry: FileEntry) -> None:
        self.entry = entry
        self.chunks = [""] * entry.chunks
        self.hasher: Any = open_digest(entry)
        self.hashed = [trio.Event() for _ in self.chunks] if self.hasher is not None else []
        self.left = entry.chunks
        self.streamed_bytes = 0


class _Ingesting:
    def __init__(self, ingest: Ingest, origin: Origin, config: UpstreamConfig, progress: Counters) -> None:
        self._ingest = ingest
        self._origin = origin
        self._progress = progress
        self._attempts = config.attempts
        self._threads = trio.CapacityLimiter(2 * config.fetches_max)
        self._pace = Pace(config.fetches_max)  # upstream's
        self._puts = Pace(config.fetches_max)  # the mirror's
        self._tier = Retry(OriginTier(origin, self._threads), self._pace, config.attempts)
        # Chunks in memory: those being fetched, and as many again being hashed or put.
        self._buffers = trio.CapacityLimiter(config.fetches_max + _FILES_AT_ONCE)
        self._free: list[bytearray] = []

    async def run(self, files: list[FileEntry]) -> None:
        send, receive = trio.open_memory_channel[FileEntry](0)
        async with open_nursery() as nursery:
            for _ in range(_FILES_AT_ONCE):
                nursery.start_soon(self._files, receive.clone())
            receive.close()
            async with send:
                for file in files:
                    await send.send(file)

    async def _files(self, files: trio.MemoryReceiveChannel[FileEntry]) -> None:
        async with open_nursery() as nursery:
            async for entry in files:
                if not entry.size:
                    await self._done(_File(entry))
                elif not entry.ranged:
                    await self._stream(entry)
                else:
                    file = _File(entry)
                    for number in range(entry.chunks):
                        # In the file's order, so that the chunk others wait for always has its buffer.
                        token = object()
                        await self._buffers.acquire_on_behalf_of(token)
                        nursery.start_soon(self._chunk, file, number, token)

    async def _chunk(self, file: _File, number: int, token: object) -> None:
        start, stop = chunk_range(file.entry.size, number)
        buffer = self._free.pop() if self._free else bytearray(CHUNK_BYTES)
        view = memoryview(buffer)[: stop - start]
        async with self._pace.slots:
            await self._tier.get(Chunk(self._ingest.listing.revision, file.entry, number), view)
        async with open_nursery() as nursery:
            nursery.start_soon(self._put, file, number, view)
            if file.hasher is not None:
                nursery.start_soon(self._hash, file, number, view)
        # Not in a `finally`: a cancelled fetch may still be writing to its buffer.
        self._free.append(buffer)
        self._buffers.release_on_behalf_of(token)
        self._progress.present_bytes += stop - start
        file.left -= 1
        if not file.left:
            await self._done(file)

    async def _put(self, file: _File, number: int, view: memoryview) -> None:
        file.chunks[number] = await self._retrying_put(view)

    async def _retrying_put(self, data: memoryview | bytes) -> str:
        async def once() -> str:
            return await trio.to_thread.run_sync(
                self._ingest.put_chunk, data, abandon_on_cancel=True, limiter=self._threads
            )

        found = await retrying(self._puts, self._attempts, once)
        self._progress.tier_bytes[ORIGIN] = self._ingest.moved_bytes
        return found

    async def _hash(self, file: _File, number: int, view: memoryview) -> None:
        if number:
            await file.hashed[number - 1].wait()
        await trio.to_thread.run_sync(file.hasher.update, view)
        file.hashed[number].set()

    async def _done(self, file: _File) -> None:
        if file.hasher is not None:
            check_digest(file.entry, file.hasher, self._origin.name)

        async def once() -> None:
            await trio.to_thread.run_sync(
                self._ingest.put_file, file.entry, file.chunks, limiter=self._threads
            )

        await retrying(self._puts, self._attempts, once)
        self._progress.files_whole += 1

    # -- upstreams without ranges -------------------------------------------------------------------

    async def _stream(self, entry: FileEntry) -> None:
        async def once() -> None:
            file = _File(entry)
            try:
                async with self._pace.slots:
                    await trio.to_thread.run_sync(self._stream_once, file, abandon_on_cancel=True)
            except BaseException:
                self._progress.present_bytes -= file.streamed_bytes
                raise
            await self._done(file)

        await retrying(self._pace, self._attempts, once)

    def _stream_once(self, file: _File) -> None:
        for number, data in chunks_of_stream(file.entry, self._pieces(file)):
            file.chunks[number] = trio.from_thread.run(self._retrying_put, data)
            file.streamed_bytes += len(data)
            self._progress.present_bytes += len(data)

    def _pieces(self, file: _File) -> Iterator[memoryview]:
        for piece in self._origin.stream(self._ingest.listing.revision, file.entry):
            trio.from_thread.check_cancelled()
            if file.hasher is not None:
                file.hasher.update(piece)
            yield piece


async def ingest_from(
    ingest: Ingest, origin: Origin, config: UpstreamConfig, progress: Counters
) -> VersionRow:
    """Bring what the mirror lacks of a listing from its origin, and publish the version.

    Raises the first error that stops a file; what is there stays, and another run goes on from it.
    """
    listing = ingest.listing
    # The same content twice in a listing is fetched once.
    unique = {version_key(listing.origin, file): file for file in reversed(listing.files)}
    progress.files = len(unique)
    progress.total_bytes = sum(file.size for file in unique.values())
    progress.state = "comparing"
    await trio.to_thread.run_sync(ingest.look, abandon_on_cancel=True)  # it only reads
    missing = [file for file in reversed(unique.values()) if not ingest.has(file)]
    progress.files_whole = len(unique) - len(missing)
    progress.present_bytes = progress.total_bytes - sum(file.size for file in missing)
    progress.state = "mirroring"
    await _Ingesting(ingest, origin, config, progress).run(missing)
    progress.state = "publishing"
    row = await trio.to_thread.run_sync(ingest.publish)
    progress.state = "whole"
    return row


def ingest_cached(cache: NodeCache, ingest: Ingest, blobs: tuple[bytes, ...]) -> VersionRow:
    """Put what the mirror still lacks of a snapshot that is whole on the node, and publish its version.

    blobs: the snapshot's, in the order of the listing. Blocking. Raises IntegrityError where a blob is
    not what the index says, and whatever the mirror raises.
    """
    for entry, blob in zip(ingest.listing.files, blobs, strict=True):
        if not ingest.has(entry):
            ingest.put_file(entry, _put_blob(cache, ingest, entry, blob) if blob else [])
    return ingest.publish()


def _put_blob(cache: NodeCache, ingest: Ingest, entry: FileEntry, blob_id: bytes) -> list[str]:
    with cache.read() as ledger:
        digests = [f"b3:{row.digest.hex()}" for _, row in sorted(ledger.chunks(blob_id))]
    blob = cache.open_blob(blob_id, entry.size)
    try:
        for number, digest in enumerate(digests):
            if ingest.has_put(digest):
                continue
            start, stop = chunk_range(entry.size, number)
            data = memoryview(bytearray(stop - start))
            blob.read(start, data)
            if ingest.put_chunk(data) != digest:
                raise IntegrityError(f"{blob.path}: has changed; run `bdnfs cache verify`, then mirror again")
    finally:
        blob.close()
    return digests


class Mirroring:
    """A tier whose bytes go into the mirror as they pass; a mirror that fails stops that, never the read."""

    def __init__(
        self, tier: Tier, ingest: Ingest, threads: trio.CapacityLimiter, warn: Callable[[str], None]
    ) -> None:
        self._tier = tier
        self._ingest = ingest
        self._threads = threads
        self._warn = warn
        self._failed = False

    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        found = await self._tier.get(chunk, into)
        if found is not None and not self._failed:
            try:
                await trio.to_thread.run_sync(self._ingest.put_chunk, into, limiter=self._threads)
            except BdnfsError as error:
                self._failed = True
                self._warn(f"the mirror takes nothing for now, filling goes on without it: {error}")
        return found
