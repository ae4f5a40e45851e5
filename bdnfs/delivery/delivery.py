"""Snapshots under way to this node: opened, read on demand, filled until whole."""

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
from bdnfs.delivery.fill import Fill
from bdnfs.delivery.nursery import open_nursery
from bdnfs.delivery.progress import Progress
from bdnfs.delivery.resolve import Admitted
from bdnfs.delivery.sealing import SYNC_BYTES, Sealer
from bdnfs.delivery.stall import BUSY_TIMEOUT_S
from bdnfs.delivery.window import Window
from bdnfs.spec.config import UpstreamConfig
from bdnfs.tiers.base import Cluster, Tier
from bdnfs.tiers.origin import MIRROR, ORIGIN, OriginTier
from bdnfs.tiers.retry import Pace, Retry

if TYPE_CHECKING:
    from bdnfs.cluster.peers import Peers


class Snapshot:
    """One admitted snapshot and the state of its files."""

    def __init__(self, admitted: Admitted, tier: Tier, cluster: Cluster | None) -> None:
        self.id = admitted.snapshot_id
        self.manifest = admitted.record.manifest
        self.pin = admitted.pin
        self.mirrored = admitted.mirrored
        self.cluster = cluster
        # The same bytes twice in a snapshot are one file here: one blob, one state.
        states: dict[bytes, OpenFile] = {}
        self.files = []
        for entry, blob in zip(self.manifest.files, admitted.record.blobs, strict=True):
            digests = admitted.digests
            ranged = entry.ranged or (digests is not None and digests.holds(entry))
            file = OpenFile(
                entry,
                blob,
                self.manifest,
                tier,
                admitted.origin,
                ranged=ranged,
                digests=digests,
                cluster=cluster,
            )
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
    ) -> None:
        self._window = window
        self.snapshots = snapshots
        self.progress = progress
        self._cache = cache
        self._fetcher = fetcher
        self._fill = Fill(cache, fetcher, sealer, progress, busy_timeout_s)

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

        Raises the first error that stops a file; what has been fetched is kept for another try.
        """
        whole = await trio.to_thread.run_sync(self._look, snapshot)
        if snapshot.waits and whole < len(snapshot.unique):
            await self._take_turn(snapshot)
        # Also where nobody is known yet: this machine's node may be starting, and all of the fill be divided by then.
        if snapshot.cluster is not None:
            await self._fill.together(snapshot.unique, snapshot.cluster)
        else:
            await self._fill.alone(snapshot.unique)
        return await trio.to_thread.run_sync(self._cache.publish_snapshot, snapshot.id)

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

                  peers ─▶ PeerTier (threads) ──┐  asked before the others
    origin ─▶ OriginTier (threads) ─▶ Retry (pace) ─┬▶ Fetcher (single-flight) ─▶ blob ─▶ Sealer
        mirror ─▶ MirrorTier (threads) ─▶ Fallback ─┘  (`Mirrored.before`)
    """
    _raise_open_files()
    pace = Pace(config.fetches_max)
    threads = trio.CapacityLimiter(2 * config.fetches_max)
    snapshots = []
    for each in admitted:
        cluster = None if peers is None else _cluster(each, peers, window=window)
        tier = _tier(each, threads, pace, config, progress)
        snapshots.append(Snapshot(each, tier, cluster))
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
                yield Delivery(cache, snapshots, fetcher, sealer, progress, busy_timeout_s, kept)
            finally:
                nursery.cancel_scope.cancel()


def _tier(
    item: Admitted,
    threads: trio.CapacityLimiter,
    pace: Pace,
    config: UpstreamConfig,
    progress: Progress,
) -> Tier:
    # A volume's origin is the mirror itself.
    name = MIRROR if item.record.manifest.source.startswith("bdn:") else ORIGIN
    origin = Retry(OriginTier(item.origin, threads, name), pace, config.attempts)
    return origin if item.mirrored is None else item.mirrored.before(origin, threads, config, progress.warn)


def _cluster(item: Admitted, peers: "Peers", *, window: bool) -> Cluster | None:
    """Return the peers as the snapshot's tier; None where no mirror says what its chunks are."""
    if item.digests is None:
        return None
    from bdnfs.tiers.peer import PeerTier  # late: brings an HTTP client

    files = item.record.manifest.files
    # A window's own are named as nobody else's.
    ids = () if window else zip(files, item.record.blobs, strict=True)
    blobs = {file.path: blob for file, blob in ids if blob}
    return PeerTier(item.digests, files, peers, blobs)


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 1 << 20, hard)
        )
