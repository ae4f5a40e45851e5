"""Looking after the cache: what it holds, and what goes."""

from dataclasses import dataclass

from bdnfs.cache.eviction import Eviction, Evictor, Holding, choose
from bdnfs.cache.index import Index
from bdnfs.cache.layout import Layout, delete, disk_free_bytes
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.rows import BlobRow, SnapshotRow
from bdnfs.cache.sweep import Sweep
from bdnfs.spec.config import CacheConfig


@dataclass(frozen=True)
class Usage:
    """What the cache holds and may hold, in bytes."""

    present_bytes: int
    charged_bytes: int
    capacity_bytes: int | None
    disk_free_bytes: int
    reserve_bytes: int


class Upkeep:
    """What an operator asks of the cache."""

    def __init__(self, layout: Layout, index: Index, evictor: Evictor, sweep: Sweep) -> None:
        self._layout = layout
        self._index = index
        self._evictor = evictor
        self._sweep = sweep

    def usage(self, config: CacheConfig) -> Usage:
        with self._index.read() as txn:
            ledger = Ledger(txn)
            return Usage(
                present_bytes=ledger.present_bytes,
                charged_bytes=ledger.charged_bytes,
                capacity_bytes=config.capacity_bytes,
                disk_free_bytes=disk_free_bytes(self._layout.root),
                reserve_bytes=config.reserve_bytes,
            )

    def holdings(self) -> list[Holding]:
        """Return every snapshot, least recently used first, and why it may not be evicted."""
        with self._index.read() as txn:
            return self._evictor.survey(Ledger(txn))

    def evict(self, unused_since_s: float, *, dry_run: bool, tenant: str | None = None) -> Eviction:
        """Evict every unpinned snapshot not used since then (seconds since the epoch), and what nobody names.

        tenant: of nobody else's
        """

        def young(row: SnapshotRow) -> bool:
            return row.used_s > unused_since_s or (tenant is not None and row.tenant != tenant)

        if dry_run:
            with self._index.read() as txn:
                ledger = Ledger(txn)
                holdings = self._evictor.survey(ledger, young)
                choice = choose(dict(ledger.blobs()), holdings, frozenset(), lambda _: False)
            return Eviction(choice.freed_bytes, [item.row for item, _ in choice.removals])
        total = Eviction(partial=True)
        while total.partial:
            with self._index.write(deletes=True) as txn:
                ledger = Ledger(txn)
                dead = self._sweep.sweep(ledger)
                eviction, _ = self._evictor.make_room(ledger, lambda _: False, everything=True, but=young)
                assert eviction is not None
            eviction.bury()
            delete(dead)
            total.freed_bytes += eviction.freed_bytes
            total.snapshots += eviction.snapshots
            total.partial = eviction.partial
        return total

    def blobs(self) -> list[tuple[bytes, BlobRow]]:
        with self._index.read() as txn:
            return list(Ledger(txn).blobs())
