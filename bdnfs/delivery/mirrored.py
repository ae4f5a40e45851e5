"""What the mirror does for one snapshot on its way to this node: gives what it has, takes what it lacks.

In a cluster only one process takes it in at a time, and the others wait for their turn: by then there is mostly nothing
left to take.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import trio

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import BdnfsError
from bdnfs.core.progress import WAITING, Counters
from bdnfs.delivery.ingest import Mirroring, ingest_cached
from bdnfs.mirror.digests import Digests
from bdnfs.mirror.held import HeldFile
from bdnfs.mirror.ingest import Ingest
from bdnfs.mirror.lease import RENEW_S, Holder, Lease
from bdnfs.spec.config import UpstreamConfig
from bdnfs.tiers.base import Chunk, Tier
from bdnfs.tiers.fallback import Fallback
from bdnfs.tiers.mirror import Matching, MirrorTier
from bdnfs.tiers.retry import Pace, Retry

# Behind it stands the origin: what the mirror fails twice, that is asked for.
_ATTEMPTS = 2
# Where others wait for their turn, they see how far it is.
SHOWN_S = 3.0


class Taken(NamedTuple):
    """What came of waiting for a turn: files that the mirror holds by now, and who is to take the others."""

    files: Mapping[str, HeldFile]
    ingest: Ingest | None = None
    lease: Lease | None = None


# Blocks until it is this process's turn to take a source in, or there is nothing left to take; asks now and then,
# naming who is at it, whether to go on waiting.
Turn = Callable[[Callable[[Holder], bool]], Taken]


@dataclass
class Mirrored:
    """One snapshot's part of the mirror.

    digests: of the chunks it holds
    ingest:  takes the others, or None where there are none, or another process is at it
    lease:   says that this process is; with ingest only
    turn:    to be waited for before anything is filled, None where it is ours, or nobody's
    renew_s: how often the lease is renewed
    """

    digests: Digests
    ingest: Ingest | None = None
    lease: Lease | None = None
    turn: Turn | None = None
    renew_s: float = RENEW_S

    def before(
        self,
        origin: Tier,
        threads: trio.CapacityLimiter,
        config: UpstreamConfig,
        warn: Callable[[str], None],
    ) -> Tier:
        """Return the mirror with the origin behind it."""
        upstream: Tier = _Taking(Matching(origin, self.digests), self, threads, warn)
        mirror = Retry(MirrorTier(self.digests, threads), Pace(config.fetches_max), _ATTEMPTS)
        return Fallback(mirror, upstream, warn)

    async def take_turn(self, progress: Counters) -> None:
        """Wait until it is our turn to take what the mirror lacks, or somebody else has; progress shows for whom.

        A mirror that fails meanwhile is a warning: the fill goes on as if there were no others.
        """
        if self.turn is None:
            return
        turn, self.turn = self.turn, None
        state, waits = progress.state, _Waits(progress)
        try:
            taken = await trio.to_thread.run_sync(waits.run, turn, abandon_on_cancel=True)
        except BdnfsError as error:
            progress.warn(f"going on without waiting for others: {error}")
            return
        finally:
            waits.over = True
            progress.state = state
        self.digests.adopt(taken.files)
        self.ingest, self.lease = taken.ingest, taken.lease

    async def keep_lease(self, done: Callable[[], tuple[int, int]]) -> None:
        """Renew the lease until cancelled; a mirror that is away, or a lost lease, ends nothing.

        done: returns how many bytes of how many are here
        """
        while True:
            await trio.sleep(self.renew_s)
            if self.lease is None:
                continue
            try:
                await trio.to_thread.run_sync(self.lease.renew, *done(), abandon_on_cancel=True)
            except BdnfsError:
                continue

    async def publish(self, cache: NodeCache, blobs: tuple[bytes, ...], warn: Callable[[str], None]) -> None:
        """Bring the rest of a snapshot that is whole here into the mirror; a failure is a warning."""
        if self.ingest is None:
            return
        try:
            await trio.to_thread.run_sync(ingest_cached, cache, self.ingest, blobs, abandon_on_cancel=True)
        except BdnfsError as error:
            warn(f"{self.ingest.listing.source}: is whole here, but could not be mirrored: {error}")
        if self.lease is not None:  # a mount may stand for days after this
            await trio.to_thread.run_sync(self.lease.release, abandon_on_cancel=True)

    def close(self) -> None:
        if self.lease is not None:
            self.lease.release()
        self.digests.contents.store.close()


class _Taking:
    """Upstream, whose bytes go into the mirror as they pass, from when it is our turn."""

    def __init__(
        self, tier: Tier, mirrored: Mirrored, threads: trio.CapacityLimiter, warn: Callable[[str], None]
    ) -> None:
        self._tier, self._mirrored = tier, mirrored
        self._threads, self._warn = threads, warn
        self._mirroring: Mirroring | None = None

    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        if self._mirroring is None and self._mirrored.ingest is not None:
            self._mirroring = Mirroring(self._tier, self._mirrored.ingest, self._threads, self._warn)
        return await (self._mirroring or self._tier).get(chunk, into)


class _Waits:
    """A wait for a turn, in a thread that may be left alone. over: nobody wants its outcome any more."""

    def __init__(self, progress: Counters) -> None:
        self._progress = progress
        self.over = False

    def run(self, turn: Turn) -> Taken:
        taken = turn(self._goes_on)
        if self.over and taken.lease is not None:
            taken.lease.release()
        return taken

    def _goes_on(self, holder: Holder) -> bool:
        if not self.over:
            share = f", {100 * holder.done // holder.total} %" if holder.total else ""
            self._progress.state = f"{WAITING}{holder}{share}"
        return not self.over
