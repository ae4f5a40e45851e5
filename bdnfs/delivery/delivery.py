"""Snapshots under way to this node: opened, read on demand, filled until whole."""

import random
import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from bdnfs.cache.node import NodeCache
from bdnfs.cache.rows import BlobRow
from bdnfs.core.ranges import chunk_range, chunks_of
from bdnfs.delivery.fetcher import Fetcher
from bdnfs.delivery.files import OpenFile
from bdnfs.delivery.nursery import open_nursery
from bdnfs.delivery.progress import Progress
from bdnfs.delivery.resolve import Admitted
from bdnfs.delivery.sealing import SYNC_BYTES, Sealer
from bdnfs.delivery.stall import BUSY_TIMEOUT_S, Stall
from bdnfs.delivery.window import Window
from bdnfs.spec.config import UpstreamConfig
from bdnfs.tiers.base import Tier
from bdnfs.tiers.origin import MIRROR, ORIGIN, OriginTier
from bdnfs.tiers.retry import Pace, Retry

if TYPE_CHECKING:
    from bdnfs.cluster.peers import Peers

# Files that are filled at the same time; the fetches they share are fewer (Pace.slots).
_FILES_AT_ONCE = 64
_BUSY_PAUSE_S = 0.05


class Snapshot:
    """One admitted snapshot and the state of its files."""

    def __init__(self, admitted: Admitted, tier: Tier) -> None:
        self.id = admitted.snapshot_id
        self.manifest = admitted.record.manifest
        self.pin = admitted.pin
        self.mirrored = admitted.mirrored
        # The same bytes twice in a snapshot are one file here: one blob, one state.
        states: dict[bytes, OpenFile] = {}
        self.files = []
        for entry, blob in zip(self.manifest.files, admitted.record.blobs, strict=True):
            ranged = admitted.mirrored is not None and admitted.mirrored.digests.holds(entry)
            file = OpenFile(entry, blob, self.manifest, tier, admitted.origin, ranged=entry.ranged or ranged)
            self.files.append(states.setdefault(blob, file) if blob else file)
        self.unique = list({id(file): file for file in self.files}.values())

    @property
    def waits(self) -> bool:
        """Whether its fill begins with waiting for who is mirroring it."""
        return self.mirrored is not None and self.mirrored.turn is not None

    def done(self) -> tuple[int, int]:
        """Return how many bytes of how many are here."""
        return sum(file.counted_bytes for file in self.unique), sum(file.entry.size for file in self.unique)

    def let_go(self) -> None:
        """Let every blob be closed."""
        for file in self.unique:
            file.let_go()


class Delivery:
    """Reads and fills of several snapshots through one fetcher. Open it with `open_delivery`."""

    def __init__(
        self,
        cache: NodeCache,
        snapshots: Sequence[Snapshot],
        fetcher: Fetcher,
        sealer: Sealer,
        progress: Progress,
        busy_timeout_s: float,
        window: Window | None,
        peers: "Peers | None",
    ) -> None:
        self._window = window
        self._peers = peers
        self._busy_timeout_s = busy_timeout_s
        self.snapshots = snapshots
        self.progress = progress
        self._cache = cache
        self._fetcher = fetcher
        self._sealer = sealer

    def read_now(self, snapshot: int, file: int, offset: int, into: memoryview) -> bool:
        """Fill `into` if every byte is present and in memory; False where anything must be waited for."""
        state = self.snapshots[snapshot].files[file]
        blob = state.blob
        if blob is None or state.error is not None:
            return False
        if not (blob.has(offset, offset + len(into)) and blob.read_now(offset, into)):
            return False
        return state.whole or not blob.has_lost()

    async def read(self, snapshot: int, file: int, offset: int, into: memoryview) -> None:
        """Fill `into`, fetching what is missing ahead of every prefetch.

        Raises the error that keeps the bytes away; a later read may succeed.
        """
        state = self.snapshots[snapshot].files[file]
        if not into:
            return
        indices = chunks_of(offset, offset + len(into))
        if self._window is not None:
            await self._read_through(self._window, state, indices, offset, into)
        elif len(indices) == 1:
            await self._read_chunks(state, indices, offset, into)
        else:
            async with open_nursery() as nursery:
                for index in indices:
                    nursery.start_soon(self._need, state, index)
            await self._read_chunks(state, indices, offset, into)

    async def _read_through(
        self, window: Window, state: OpenFile, indices: range, offset: int, into: memoryview
    ) -> None:
        """Read chunk after chunk, each kept only while it is being read."""
        for index in indices:
            start, stop = chunk_range(state.entry.size, index)
            first, last = max(start, offset), min(stop, offset + len(into))
            with window.reading(state, index):
                await self._read_chunks(
                    state, range(index, index + 1), first, into[first - offset : last - offset]
                )

    async def _read_chunks(self, state: OpenFile, indices: range, offset: int, into: memoryview) -> None:
        for index in indices:
            await self._need(state, index)
        if state.error is not None:
            raise state.error
        # Not abandoned when cancelled: a window may take the chunk back right after.
        await trio.to_thread.run_sync(state.read, self._cache, offset, into)

    async def _need(self, state: OpenFile, index: int) -> None:
        await self._fetcher.need(state, index, demand=True)

    def in_turn(self) -> list[Snapshot]:
        """Return the snapshots in the order in which to fill them, each to be published before the next is begun.

        Those last that wait for somebody else: two that each waited before they did what the other waits for would
        wait for ever.
        """
        return sorted(self.snapshots, key=lambda snapshot: snapshot.waits)

    async def fill(self, snapshot: Snapshot) -> Path:
        """Bring everything of the snapshot here; return its tree once it is whole.

        With peers in an order of its own: at any moment the nodes that fill the same ask all owners, and each for
        something else. Raises the first error that stops a file; what has been fetched is kept for another try.
        """
        whole = await trio.to_thread.run_sync(self._look, snapshot)
        if snapshot.waits and whole < len(snapshot.unique):
            await self._take_turn(snapshot)
        files = list(snapshot.unique)
        if self._shuffles:
            random.shuffle(files)
        send, receive = trio.open_memory_channel[OpenFile](0)
        async with open_nursery() as nursery:
            for _ in range(min(_FILES_AT_ONCE, max(1, len(snapshot.unique) - whole))):
                nursery.start_soon(self._fill_files, receive.clone())
            receive.close()
            async with send:
                for file in files:
                    if not file.whole:
                        await send.send(file)
        return await trio.to_thread.run_sync(self._cache.publish_snapshot, snapshot.id)

    @property
    def _shuffles(self) -> bool:
        return self._peers is not None and self._peers.any

    async def _take_turn(self, snapshot: Snapshot) -> None:
        """Let who is mirroring the snapshot finish, or take over from it."""
        assert snapshot.mirrored is not None
        await snapshot.mirrored.take_turn(self.progress)
        for file in snapshot.unique:
            if file.blob is None and snapshot.mirrored.digests.holds(file.entry):
                file.ranged = True

    def _look(self, snapshot: Snapshot) -> int:
        """Note which files are whole already; return how many. One that was touched is rehashed."""
        with self._cache.read() as ledger:
            rows = {file: ledger.blob(file.blob_id) for file in snapshot.unique if file.blob_id}
        count = 0
        for file in snapshot.unique:
            row = rows.get(file)
            if row is not None and row.whole:
                file.whole = self._is_sealed(file, row)
            if file.whole:
                count += 1
                self.progress.whole(file)
        return count

    def _is_sealed(self, file: OpenFile, row: BlobRow) -> bool:
        if self._cache.looks_sealed(file.blob_id, row) or self._cache.verify_blob(file.blob_id) is None:
            return True
        file.let_go()  # another file takes its place
        return False

    async def _fill_files(self, files: trio.MemoryReceiveChannel[OpenFile]) -> None:
        async for file in files:
            async with open_nursery() as nursery:
                nursery.start_soon(self._sealer.finish, file)
                await self._fill_chunks(file)

    async def _fill_chunks(self, file: OpenFile) -> None:
        """Ask for every missing chunk; what another process is fetching is looked at again later."""
        blob = await file.opened(self._cache)
        if not file.ranged:
            while not file.whole and not blob.complete:
                await self._fetcher.need(file, blob.present.find(0), demand=False)
            return
        waiting = [index for index, present in enumerate(blob.present) if not present]
        self.progress.has(file, file.entry.size - missing_bytes(file.entry.size, waiting))
        if self._shuffles:
            random.shuffle(waiting)
        stall = Stall(blob.path, self._busy_timeout_s)
        while waiting and not file.whole:
            before, waiting = len(waiting), await self._round(file, waiting)
            if waiting:
                if len(waiting) < before:
                    stall.moved()
                stall.check("a chunk")
                # Not the same order as everyone else: eight ranks would meet at each chunk.
                random.shuffle(waiting)
                await trio.sleep(_BUSY_PAUSE_S)

    async def _round(self, file: OpenFile, indices: list[int]) -> list[int]:
        """Ask for each once; return those that another process is at."""
        queue, busy = iter(indices), list[int]()

        async def work() -> None:
            for index in queue:
                if not await self._fetcher.prefetch(file, index):
                    busy.append(index)

        async with open_nursery() as nursery:
            for _ in range(min(len(indices), self._fetcher.fetches_max)):
                nursery.start_soon(work)
        return busy


@asynccontextmanager
async def open_delivery(
    cache: NodeCache,
    admitted: Sequence[Admitted],
    config: UpstreamConfig,
    progress: Progress,
    *,
    window: bool = False,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
    sync_bytes: int = SYNC_BYTES,
    peers: "Peers | None" = None,
) -> AsyncIterator[Delivery]:
    """Open delivery for admitted snapshots: this wiring is the way of a byte.

    window: they were admitted as windows; nothing is filled, chunks come and go as they are read.
    busy_timeout_s: how long another process may hold what is wanted here without getting on.
    sync_bytes: how much of a file may be fetched before it is brought to the disk.
    peers: who is asked before the mirror.

    origin ─▶ OriginTier (threads) ─▶ Retry (pace) ─┬▶ Fetcher (single-flight) ─▶ blob ─▶ Sealer
        mirror ─▶ MirrorTier (threads) ─▶ Fallback ─┤  (`Mirrored.before`)
               peers ─▶ PeerTier (threads) ─▶ Fallback
    """
    _raise_open_files()
    pace = Pace(config.fetches_max)
    threads = trio.CapacityLimiter(2 * config.fetches_max)
    snapshots = [Snapshot(item, _tier(item, threads, pace, config, progress, peers)) for item in admitted]
    progress.total_bytes = sum(file.entry.size for item in snapshots for file in item.unique)
    progress.files = sum(len(item.unique) for item in snapshots)
    with ExitStack() as after:  # once every worker thread that may use a descriptor has come back
        for item in snapshots:
            if window:
                after.callback(cache.drop_window, item.id)
            after.callback(item.pin.close)
            after.callback(item.let_go)
        async with open_nursery() as nursery:
            sealer = Sealer(cache, nursery, progress, busy_timeout_s, sync_bytes)
            after.callback(sealer.close)
            kept = Window(cache, cache.window_floor(item.id for item in snapshots)) if window else None
            for snapshot in snapshots:
                if snapshot.mirrored is not None:
                    nursery.start_soon(snapshot.mirrored.keep_lease, snapshot.done)
            if peers is not None:
                nursery.start_soon(peers.keep, progress.tier_bytes)
            fetcher = Fetcher(cache, nursery, pace, progress, config, busy_timeout_s, kept)
            try:
                yield Delivery(cache, snapshots, fetcher, sealer, progress, busy_timeout_s, kept, peers)
            finally:
                nursery.cancel_scope.cancel()


def _tier(
    item: Admitted,
    threads: trio.CapacityLimiter,
    pace: Pace,
    config: UpstreamConfig,
    progress: Progress,
    peers: "Peers | None",
) -> Tier:
    # A volume's origin is the mirror itself.
    name = MIRROR if item.record.manifest.source.startswith("bdn:") else ORIGIN
    origin = Retry(OriginTier(item.origin, threads, name), pace, config.attempts)
    if item.mirrored is None:
        return origin
    files = item.record.manifest.files
    return item.mirrored.before(origin, threads, config, progress.warn, peers, files)


def missing_bytes(size: int, indices: Sequence[int]) -> int:
    """Return how many bytes these chunks of a file of that size have together."""
    return sum(stop - start for start, stop in (chunk_range(size, index) for index in indices))


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 1 << 20, hard)
        )
