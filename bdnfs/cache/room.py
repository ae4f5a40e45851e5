"""Whether bytes fit: the capacity is a hard cap on what is charged, the reserve a floor of free disk."""

from collections.abc import Iterable
from typing import NamedTuple

from bdnfs.cache.eviction import Eviction, Evictor, Holding
from bdnfs.cache.layout import Layout, delete, disk_free_bytes
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.sweep import Sweep
from bdnfs.core.errors import SpaceError
from bdnfs.core.units import format_size, short
from bdnfs.spec.config import CacheConfig


class _Limits(NamedTuple):
    """How many bytes are too many, by the capacity and by the reserve."""

    lacks_capacity: int
    lacks_disk: int

    def fits(self, freed_bytes: int) -> bool:
        return freed_bytes >= self.lacks_capacity and freed_bytes >= self.lacks_disk


class Room:
    """Makes room inside a write transaction; what it evicts is buried after the commit."""

    def __init__(self, layout: Layout, config: CacheConfig, evictor: Evictor, sweep: Sweep) -> None:
        self._layout = layout
        self._config = config
        self._evictor = evictor
        self._sweep = sweep

    def fits(self, ledger: Ledger, need_bytes: int, *, disk_bytes: int | None = None) -> bool:
        """Say whether need_bytes more may be charged as things are; disk_bytes as in `make`."""
        return self._limits(ledger, need_bytes, disk_bytes).fits(0)

    def _limits(self, ledger: Ledger, need_bytes: int, disk_bytes: int | None) -> "_Limits":
        if disk_bytes is None:
            disk_bytes = need_bytes
        capacity = self._config.capacity_bytes
        charged = ledger.charged_bytes
        # What is charged and not present yet will still be written, by whoever was promised it.
        free = disk_free_bytes(self._layout.root) - (charged - ledger.present_bytes)
        return _Limits(
            lacks_capacity=0 if capacity is None else charged + need_bytes - capacity,
            lacks_disk=disk_bytes + self._config.reserve_bytes - free if disk_bytes else 0,
        )

    def make(
        self,
        ledger: Ledger,
        need_bytes: int,
        wanted: Iterable[bytes],
        purpose: str,
        but: str = "",
        disk_bytes: int | None = None,
    ) -> Eviction:
        """Evict until need_bytes fit; raise SpaceError, having touched nothing, where pins forbid it.

        wanted: blobs that are about to be used. purpose: what needs the room, for the message;
        but: the snapshot that it is for. disk_bytes: how many of them are not on the disk yet (None: all).
        """
        if need_bytes == 0:
            return Eviction()
        # What others have evicted is not charged any more, but may still be there.
        delete(self._sweep.dead(ledger))
        limits = self._limits(ledger, need_bytes, disk_bytes)
        if limits.fits(0):
            return Eviction()
        eviction, holdings = self._evictor.make_room(ledger, limits.fits, wanted=frozenset(wanted))
        if eviction is None:
            raise SpaceError(self._refusal(ledger, need_bytes, holdings, purpose, but))
        return eviction

    def _refusal(
        self, ledger: Ledger, need_bytes: int, holdings: list[Holding], purpose: str, but: str
    ) -> str:
        capacity, free_bytes = self._config.capacity_bytes, disk_free_bytes(self._layout.root)
        pinned = [
            f"{item.row.source}@{short(item.row.revision)} ({format_size(item.row.size)}, {item.pinned})"
            for item in holdings
            if item.pinned and item.snapshot_id != but
        ]
        return (
            f"{purpose}: needs {format_size(need_bytes)} more in {self._layout.root}, where "
            f"{format_size(ledger.charged_bytes)} of {'no limit' if capacity is None else format_size(capacity)} "
            f"are taken and the disk has {format_size(free_bytes)} free, {format_size(self._config.reserve_bytes)} of "
            f"them reserved; pinned: {'; '.join(pinned) or 'nothing'}. Nothing was fetched or evicted. Raise "
            "cache.capacity, unmount something, or read it with `--lazy --no-fill`"
        )
