"""Brings chunks: single-flight in the process and between processes, demand before prefetch.

A flight is owned by the layer's nursery, never by who waits for it: a cancelled reader leaves
it running for the others. docs/concurrency.md names the locks and their order.
"""

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import trio

from bdnfs.cache.blobs import Blob
from bdnfs.cache.node import NodeCache
from bdnfs.cache.rows import ChunkRef, ChunkRow, ChunkState
from bdnfs.core.errors import BdnfsError, UpstreamError
from bdnfs.core.ranges import CHUNK_BYTES, chunk_range
from bdnfs.core.steps import reach
from bdnfs.delivery.commits import Commits
from bdnfs.delivery.cutting import chunks_of_stream
from bdnfs.delivery.files import Buffers, OpenFile
from bdnfs.delivery.progress import Progress
from bdnfs.delivery.stall import Stall
from bdnfs.delivery.window import Window
from bdnfs.spec.config import UpstreamConfig
from bdnfs.tiers.base import Chunk, Cluster
from bdnfs.tiers.origin import MIRROR, ORIGIN, PEER
from bdnfs.tiers.retry import Pace, retrying

# Demand reads get slots of their own, so that none waits for a prefetched chunk to end.
DEMAND_FETCHES_MAX = 8
_BUSY_FIRST_PAUSE_S, _BUSY_PAUSE_MAX_S = 0.01, 0.2


class Claim(enum.Enum):
    """What came of asking for a chunk's byte range."""

    PRESENT = enum.auto()
    BUSY = enum.auto()  # another process is at it
    MINE = enum.auto()


class _Flight:
    """One chunk, or one stream, on its way. busy: another process is at it, and nobody waits for that."""

    def __init__(self) -> None:
        self.done = False
        self.error: BdnfsError | None = None
        self.busy = False
        self._moved = trio.Event()

    def moved(self) -> None:
        """Wake who waits: a chunk is there, or the end."""
        self._moved.set()
        self._moved = trio.Event()

    async def wait_moved(self) -> None:
        await self._moved.wait()


class Fetcher:
    """Fetches chunks of open files into their blobs."""

    def __init__(
        self,
        cache: NodeCache,
        nursery: trio.Nursery,
        pace: Pace,
        progress: Progress,
        config: UpstreamConfig,
        busy_timeout_s: float,
        window: Window | None = None,
    ) -> None:
        self._window = window
        self._cache = cache
        self._nursery = nursery
        self._pace = pace
        self._progress = progress
        self._attempts = config.attempts
        self._busy_timeout_s = busy_timeout_s
        self.fetches_max = config.fetches_max
        self._commits = Commits(cache)
        self._buffers = Buffers()
        self._demand_slots = trio.CapacityLimiter(DEMAND_FETCHES_MAX)
        self._flights: dict[ChunkRef, _Flight] = {}
        self._streams: dict[bytes, _Flight] = {}
        nursery.start_soon(self._commits.run)

    async def prefetch(self, file: OpenFile, index: int) -> bool:
        """Bring the chunk once a slot is free; False while another process is at it.

        The slot is had before the chunk is claimed: what waits in a queue holds up nobody.
        """
        async with self._pace.slots:
            return await self.need(file, index, demand=False)

    async def need(self, file: OpenFile, index: int, *, demand: bool) -> bool:
        """Return True once the chunk is present; False (prefetch only) while another process is at it.

        Raises what the fetch raised.
        """
        while True:
            if file.error is not None:
                raise file.error
            if file.whole:
                return True
            blob = await file.opened(self._cache)
            if blob.present[index]:
                return True
            flight = self._flight(file, index, demand=demand)
            while not flight.done and not blob.present[index]:
                await flight.wait_moved()
            if flight.error is not None:
                raise flight.error
            if flight.busy and not demand:
                return False

    def _flight(self, file: OpenFile, index: int, *, demand: bool) -> _Flight:
        """Join the chunk's flight or start one; decided without awaiting."""
        if not file.ranged:
            flight = self._streams.get(file.blob_id)
            if flight is None:
                flight = self._streams[file.blob_id] = _Flight()
                self._nursery.start_soon(self._fly_stream, file, flight)
            return flight
        ref = ChunkRef(file.blob_id, index)
        flight = self._flights.get(ref)
        if flight is None:
            flight = self._flights[ref] = _Flight()
            self._nursery.start_soon(self._fly, file, ref, flight, demand)
        return flight

    async def _fly(self, file: OpenFile, ref: ChunkRef, flight: _Flight, demand: bool) -> None:
        with self._landing(flight, self._flights, ref):
            if self._window is not None:
                await self._window.settled(ref)
            blob = await file.opened(self._cache)
            if blob.present[ref.number]:
                return  # opened anew, and whole by now: there is nothing to claim
            claim, asked = None, False
            if file.cluster is not None and self._window is None and not demand:
                claim = await self._bring_at_once(file.cluster, file, blob, ref)
                asked = claim is not None
            if claim is None:
                claim = await self._claim(file, blob, ref.number)
            stall = Stall(blob.path, self._busy_timeout_s)
            pause_s = _BUSY_FIRST_PAUSE_S
            while claim is Claim.BUSY and demand:
                stall.check("a chunk")
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 2, _BUSY_PAUSE_MAX_S)
                claim = await self._claim(file, blob, ref.number)
            flight.busy = claim is Claim.BUSY
            if claim is Claim.MINE:
                try:
                    if demand:
                        async with self._demand_slots:
                            await self._bring(file, blob, ref, asked=asked)
                    else:
                        await self._bring(file, blob, ref, asked=asked)
                finally:
                    blob.release(ref.number)

    @contextmanager
    def _landing(self, flight: _Flight, flights: dict[Any, _Flight], key: object) -> Iterator[None]:
        """End the flight however it went; only our own errors reach those who wait."""
        try:
            yield
        except BdnfsError as error:
            flight.error = error
        finally:
            del flights[key]
            flight.done = True
            flight.moved()

    async def _claim(self, file: OpenFile, blob: Blob, index: int) -> Claim:
        claim = await trio.to_thread.run_sync(self._claim_blocking, blob, index)
        if claim is Claim.PRESENT:
            self._landed(file, blob, index)
        return claim

    def _claim_blocking(self, blob: Blob, index: int) -> Claim:
        """Take the chunk's lock, then look again: another process may have brought it meanwhile."""
        mine = blob.claim(index)
        kept = False
        try:
            row = self._cache.chunk(ChunkRef(blob.id, index))
            if row is not None and (row.state is ChunkState.SYNCED or self._cache.is_alive(row.writer)):
                return Claim.PRESENT
            if not mine:
                return Claim.BUSY
            start, stop = chunk_range(blob.size, index)
            if row is not None and self._cache.adopt(blob, index, row, memoryview(bytearray(stop - start))):
                return Claim.PRESENT
            kept = True
            return Claim.MINE
        finally:
            if mine and not kept:
                blob.release(index)

    async def _bring_at_once(
        self, cluster: Cluster, file: OpenFile, blob: Blob, ref: ChunkRef
    ) -> Claim | None:
        """Claim a chunk, ask the peers for it and write it, all in one thread.

        Returns PRESENT once it is here, BUSY, MINE where it is claimed and no peer gives it, None where none was asked.
        """
        claim, row = None, None

        def first() -> bool:
            nonlocal claim
            claim = self._claim_blocking(blob, ref.number)
            return claim is Claim.MINE

        def then(data: memoryview) -> None:
            nonlocal row
            row = self._write(blob, ref.number, data, file)

        chunk = Chunk(file.revision, file.entry, ref.number)
        start, stop = chunk.range
        buffer = self._buffers.take(stop - start)
        try:
            tier = await cluster.bring(chunk, memoryview(buffer)[: stop - start], first, then)
            self._buffers.give(buffer)
            if tier is not None and row is not None:
                await self._publish(file, blob, ref.number, row, tier)
        except BaseException:
            if claim is Claim.MINE:
                blob.release(ref.number)
            raise
        if row is not None:
            blob.release(ref.number)
            return Claim.PRESENT
        if claim is Claim.PRESENT:
            self._landed(file, blob, ref.number)
        return claim

    async def _bring(self, file: OpenFile, blob: Blob, ref: ChunkRef, *, asked: bool) -> None:
        """asked: the peers have been."""
        fetch = partial(self._fetch, file, blob, ref, asked=asked)
        if self._window is None:
            await fetch()
        else:
            await self._window.fetch(file, blob, ref.number, fetch)

    async def _fetch(self, file: OpenFile, blob: Blob, ref: ChunkRef, *, asked: bool) -> None:
        chunk = Chunk(file.revision, file.entry, ref.number)
        start, stop = chunk.range
        buffer = self._buffers.take(stop - start)
        view = memoryview(buffer)[: stop - start]
        tier = None
        if file.cluster is not None and not asked:
            tier = await file.cluster.bring(chunk, view)
        if tier is None:
            tier = await file.tier.get(chunk, view)
        if tier is None:
            raise UpstreamError(f"{file.entry.path}: no tier has its chunk {ref.number}; mount again")
        await self._store(file, blob, ref.number, view, tier)
        # Not in a `finally`: a cancelled fetch may still be writing to its buffer.
        self._buffers.give(buffer)

    async def _store(self, file: OpenFile, blob: Blob, index: int, data: memoryview, tier: str) -> None:
        # Checked a moment ago, by the tier that gave it.
        checked = tier in (PEER, MIRROR) and file.digests is not None
        row = await trio.to_thread.run_sync(self._write, blob, index, data, file if checked else None)
        await self._publish(file, blob, index, row, tier)

    async def _publish(self, file: OpenFile, blob: Blob, index: int, row: ChunkRow, tier: str) -> None:
        await self._commits.publish(ChunkRef(blob.id, index), row)
        reach("chunk:committed")
        start, stop = chunk_range(blob.size, index)
        file.unsynced_bytes += stop - start
        self._progress.fetched(tier, stop - start)
        self._landed(file, blob, index)

    def _write(self, blob: Blob, index: int, data: memoryview, checked: OpenFile | None) -> ChunkRow:
        digest = checked.digest_of(index) if checked is not None else None
        row = ChunkRow(ChunkState.FILLED, self._cache.writer, blob.write(index, data, digest))
        reach("chunk:written")
        blob.check_written()
        return row

    def _landed(self, file: OpenFile, blob: Blob, index: int) -> None:
        blob.present[index] = 1
        current = file.blob
        if current is not None and current is not blob:
            current.present[index] = 1
        self._progress.has(file, _present_bytes(blob))
        file.changed()

    # -- upstreams without ranges: the file comes in one stream, from its first byte ----------------

    async def _fly_stream(self, file: OpenFile, flight: _Flight) -> None:
        with self._landing(flight, self._streams, file.blob_id):
            blob = await file.opened(self._cache)
            if blob.complete:
                return
            stall = Stall(blob.path, self._busy_timeout_s)
            # The lock on the first chunk stands for the stream; the rows say how far it has come.
            while not await trio.to_thread.run_sync(blob.claim, 0):
                if await self._look_again(file, blob):
                    stall.moved()
                    flight.moved()
                stall.check("the stream")
                await trio.sleep(_BUSY_PAUSE_MAX_S)
            try:
                if await self._look_again(file, blob):
                    flight.moved()
                if not blob.complete:
                    async with self._pace.slots:
                        await self._stream_retrying(file, blob, flight)
            finally:
                blob.release(0)

    async def _look_again(self, file: OpenFile, blob: Blob) -> bool:
        """Note what others have brought of the file; return whether there was anything new."""
        new = [
            index
            for index, present in enumerate(await trio.to_thread.run_sync(self._present, file))
            if present and not blob.present[index]
        ]
        for index in new:
            self._landed(file, blob, index)
        return bool(new)

    def _present(self, file: OpenFile) -> bytearray:
        blob = self._cache.open_blob(file.blob_id, file.entry.size)
        blob.close()
        return blob.present

    async def _stream_retrying(self, file: OpenFile, blob: Blob, flight: _Flight) -> None:
        async def once() -> None:
            await trio.to_thread.run_sync(self._stream, file, blob, flight, abandon_on_cancel=True)

        await retrying(self._pace, self._attempts, once)

    def _stream(self, file: OpenFile, blob: Blob, flight: _Flight) -> None:
        """Store each chunk of the stream that is missing; runs in a worker thread."""
        for index, data in chunks_of_stream(file.entry, self._pieces(file)):
            trio.from_thread.run(self._store_streamed, file, blob, flight, index, data)

    def _pieces(self, file: OpenFile) -> Iterator[memoryview]:
        for piece in file.origin.stream(file.revision, file.entry):
            trio.from_thread.check_cancelled()
            yield piece

    async def _store_streamed(
        self, file: OpenFile, blob: Blob, flight: _Flight, index: int, data: memoryview
    ) -> None:
        # A thread that was abandoned has lost its claim.
        if not blob.present[index] and not flight.done:
            await self._store(file, blob, index, data, ORIGIN)
            flight.moved()


def _present_bytes(blob: Blob) -> int:
    missing = blob.present.count(0) * CHUNK_BYTES
    if missing and not blob.present[-1]:
        start, stop = chunk_range(blob.size, len(blob.present) - 1)
        missing += stop - start - CHUNK_BYTES
    return blob.size - missing
