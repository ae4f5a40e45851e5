"""What the mirror does for one snapshot on its way to this node: gives what it has, takes what it lacks."""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import BdnfsError
from bdnfs.delivery.ingest import Mirroring, ingest_cached
from bdnfs.mirror.digests import Digests
from bdnfs.mirror.ingest import Ingest
from bdnfs.mirror.lease import RENEW_S, Lease
from bdnfs.spec.config import UpstreamConfig
from bdnfs.tiers.base import Tier
from bdnfs.tiers.fallback import Fallback
from bdnfs.tiers.mirror import Matching, MirrorTier
from bdnfs.tiers.retry import Pace, Retry

# Behind it stands the origin: what the mirror fails twice, that is asked for.
_ATTEMPTS = 2


@dataclass(frozen=True)
class Mirrored:
    """One snapshot's part of the mirror.

    digests: of the chunks it holds
    ingest:  takes the others, or None where there are none, or another process is at it
    lease:   says that this process is; with ingest only
    """

    digests: Digests
    ingest: Ingest | None = None
    lease: Lease | None = None

    def before(
        self,
        origin: Tier,
        threads: trio.CapacityLimiter,
        config: UpstreamConfig,
        warn: Callable[[str], None],
    ) -> Tier:
        """Return the mirror with the origin behind it."""
        upstream: Tier = Matching(origin, self.digests)
        if self.ingest is not None:
            upstream = Mirroring(upstream, self.ingest, threads, warn)
        mirror = Retry(MirrorTier(self.digests, threads), Pace(config.fetches_max), _ATTEMPTS)
        return Fallback(mirror, upstream, warn)

    async def keep_lease(self) -> None:
        """Renew the lease until cancelled; a mirror that is away, or a lost lease, ends nothing."""
        while self.lease is not None:
            await trio.sleep(RENEW_S)
            try:
                await trio.to_thread.run_sync(self.lease.renew, abandon_on_cancel=True)
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
