"""The node cache as the layers above see it: one object before the rooms of this house. Blocking.

Nothing here imports trio: a mount whose snapshot is whole runs through this file alone. Rooms that a
hit does not enter are not opened for it.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bdnfs.cache.blobs import Blob
from bdnfs.cache.filling import Filling
from bdnfs.cache.index import LOCK_TIMEOUT_S
from bdnfs.cache.known import Known, looks_sealed
from bdnfs.cache.layout import Layout
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.locks import who_holds
from bdnfs.cache.opening import open_index, release
from bdnfs.cache.pins import Pin, Scanner, remove_pin_file
from bdnfs.cache.records import read_record, snapshot_id
from bdnfs.cache.rows import BlobRow, ChunkRef, ChunkRow, Record, Seal
from bdnfs.cache.writers import Writers
from bdnfs.core.errors import CacheError
from bdnfs.manifest.model import Manifest
from bdnfs.spec.config import CacheConfig

if TYPE_CHECKING:
    from bdnfs.cache.admission import Admission
    from bdnfs.cache.adopting import Adopting
    from bdnfs.cache.eviction import Eviction, Evictor, Holding
    from bdnfs.cache.room import Room
    from bdnfs.cache.standing import Standing
    from bdnfs.cache.sweep import Sweep
    from bdnfs.cache.upkeep import Upkeep, Usage
    from bdnfs.cache.verify import Verifier
    from bdnfs.cache.windows import Windows

__all__ = ["ChunkRef", "NodeCache", "Seal", "open_node_cache", "snapshot_id"]

# One process rebuilds, the others wait: rehashing terabytes takes its time.
REBUILD_TIMEOUT_S = 3600.0


class NodeCache:
    """One process's view of a node cache. Open it with `open_node_cache`."""

    def __init__(
        self,
        config: CacheConfig,
        scan: Scanner,
        *,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        rebuild_timeout_s: float = REBUILD_TIMEOUT_S,
    ) -> None:
        self.config = config
        self._scan = scan
        self._lock_timeout_s = lock_timeout_s
        self.layout = layout = Layout(Path(config.directory))
        layout.prepare()
        self._index = index = open_index(layout.root, lock_timeout_s)
        self._writers = Writers(layout)
        self._known = Known(layout, index)
        self._filling = Filling(layout, index, self._writers)
        try:
            self._ensure_built(rebuild_timeout_s)
        except BaseException:
            release(index)
            raise

    def _ensure_built(self, timeout_s: float) -> None:
        with self.read() as ledger:
            built = ledger.built
        if not built:
            from bdnfs.cache.rebuild import ensure_built

            ensure_built(self.layout, self._index, timeout_s)

    @cached_property
    def _evictor(self) -> "Evictor":
        from bdnfs.cache.eviction import Evictor

        return Evictor(self.layout, self._scan)

    @cached_property
    def _sweep(self) -> "Sweep":
        from bdnfs.cache.sweep import Sweep

        return Sweep(self.layout, self._scan, self._writers)

    @cached_property
    def _room(self) -> "Room":
        from bdnfs.cache.room import Room

        return Room(self.layout, self.config, self._evictor, self._sweep)

    @cached_property
    def _admission(self) -> "Admission":
        from bdnfs.cache.admission import Admission

        return Admission(self.layout, self._index, self._room, self._sweep)

    @cached_property
    def adopting(self) -> "Adopting":
        """Takes files into the cache that are on the node already."""
        from bdnfs.cache.adopting import Adopting

        return Adopting(self.layout, self._index, self._room, self._sweep, self._writers)

    @cached_property
    def _windows(self) -> "Windows":
        from bdnfs.cache.windows import Windows

        return Windows(self.layout, self._index, self._room)

    @cached_property
    def _verifier(self) -> "Verifier":
        from bdnfs.cache.verify import Verifier

        return Verifier(self.layout, self._index, self._filling, self._writers)

    @cached_property
    def _standing(self) -> "Standing":
        from bdnfs.cache.standing import Standing

        return Standing(self.layout, self._index, self._known, self._room, self._verifier, self._writers)

    @cached_property
    def _upkeep(self) -> "Upkeep":
        from bdnfs.cache.upkeep import Upkeep

        return Upkeep(self.layout, self._index, self._evictor, self._sweep)

    def close(self) -> None:
        release(self._index)
        self._writers.close()

    @contextmanager
    def read(self) -> Iterator[Ledger]:
        """Look at the index. Raises CacheError when its lock isn't had in time."""
        with self._index.read() as txn:
            yield Ledger(txn)

    # -- what the node knows ----------------------------------------------------------------------

    def snapshot_of(self, selection: str, revision: str) -> str | None:
        """Return the id of the snapshot that selection had at the immutable revision, if known."""
        return self._known.snapshot_of(selection, revision)

    def last_revision(self, selection: str, name: str | None) -> str | None:
        """Return the immutable revision that the branch name was last seen at."""
        return self._known.last_revision(selection, name)

    def saw_revision(self, selection: str, name: str | None, revision: str) -> None:
        """Remember which immutable revision the branch name was just seen at."""
        self._known.saw_revision(selection, name, revision)

    def record(self, snapshot_id: str) -> Record | None:
        """Return the snapshot's manifest and blobs; None where there is none or it is damaged."""
        return read_record(self.layout, snapshot_id)

    def pin(self, snapshot_id: str) -> Pin:
        """Forbid the snapshot's eviction until the pin is closed or this process ends."""
        path = self.layout.pins / snapshot_id
        try:
            return Pin(path, time.monotonic() + self._lock_timeout_s)
        except TimeoutError:
            raise CacheError(
                f"{path}: an eviction has held this for {self._lock_timeout_s:g} s; one of these is it: "
                f"{who_holds(path)}. Is it stopped? Continue or end it, then try again"
            ) from None

    def whole_tree(self, snapshot_id: str) -> Path | None:
        """Return the snapshot's tree if all of it is here, as it was sealed; the caller holds a pin.

        A tree that is missing or was written to is linked again from blobs that are still good;
        a blob that is not is forgotten, and the snapshot is no longer whole.
        """
        return self._known.standing_tree(snapshot_id) or self._standing.restore(snapshot_id)

    def used(self, snapshot_id: str) -> None:
        """Note that the snapshot was used now, for the LRU."""
        self._known.used(snapshot_id)

    def pin_until(self, snapshot_id: str, until_s: float) -> None:
        """Forbid the snapshot's eviction until until_s, seconds since the epoch; 0 ends that."""
        self._known.pin_until(snapshot_id, until_s)

    # -- admission --------------------------------------------------------------------------------

    def admit(
        self, manifest: Manifest, selection: str, branch: str | None, patterns: str, *, window: bool = False
    ) -> tuple[str, Pin]:
        """Make room for the snapshot and charge its bytes, before the first one is fetched.

        Returns its id and a pin. window: it will not be kept whole (`--no-fill`); it gets an id and
        blobs of its own, room for one chunk, and more as chunks come. Raises SpaceError with the numbers
        where it can't fit; then nothing was changed.
        """
        from bdnfs.cache.admission import new_salt

        salt = new_salt() if window else ""
        snapshot = snapshot_id(manifest, salt)
        pin = self.pin(snapshot)
        try:
            self._admission.admit(manifest, selection, branch, patterns, salt)
        except BaseException:
            pin.close()
            with suppress(CacheError), self.read() as ledger:
                if ledger.snapshot(snapshot) is None:
                    remove_pin_file(self.layout, snapshot)
            raise
        return snapshot, pin

    def present_of(self, manifest: Manifest) -> int:
        """Return how many bytes of the manifest's files are on the node."""
        from bdnfs.cache.admission import blob_for

        with self.read() as ledger:
            rows = (
                ledger.blob(blob_for(ledger, manifest.origin, file, manifest.tenant))
                for file in manifest.files
                if file.size
            )
            return sum(row.present for row in rows if row is not None)

    def reserve_window(self, blob: bytes, size: int, *, evict: bool) -> bool:
        """Charge a window's blob with another chunk; False where it doesn't fit (evict: nor can be made to)."""
        return self._windows.reserve(blob, size, evict=evict)

    def window_floor(self, snapshots: Iterable[str]) -> bytes | None:
        """Return the blob of new windows that room for one chunk is charged on; None where nothing is missing."""
        return self._windows.floor(snapshots)

    def move_window(self, source: bytes, target: bytes, size: int) -> None:
        """Charge target in the place of source: for a chunk that stands on the window's floor."""
        self._windows.move(source, target, size)

    def release_window(self, refs: Iterable[ChunkRef], floor: tuple[ChunkRef, bytes] | None = None) -> None:
        """Take chunks whose space has been given back out of a window: their rows and their charge go.

        floor: the chunk that stands on the floor, and the blob that gets its charge back.
        """
        self._windows.release(refs, floor)

    def drop_window(self, snapshot: str) -> None:
        """Forget a window's snapshot and its own blobs; nobody may have it open."""
        self._windows.drop(snapshot)

    # -- filling ----------------------------------------------------------------------------------

    @property
    def writer(self) -> bytes:
        """This process's name in the rows of chunks it fills; a lock says that it lives."""
        return self._writers.own

    def is_alive(self, writer: bytes) -> bool:
        return self._writers.is_alive(writer)

    def open_blob(self, blob: bytes, size: int) -> Blob:
        """Open a blob with what is present of it; chunks of a dead writer are not, until adopted.

        A whole one that was touched since it was sealed is rehashed first.
        """
        row = self._filling.row(blob)
        if row is not None and row.whole and not looks_sealed(self.layout, blob, row):
            self._verifier.verify(blob)
        return self._filling.open(blob, size)

    def chunk(self, ref: ChunkRef) -> ChunkRow | None:
        with self.read() as ledger:
            return ledger.chunk(*ref)

    def adopt(self, blob: Blob, index: int, row: ChunkRow, buffer: memoryview) -> bool:
        """Trust a chunk that a dead writer left, if the disk says the same; else forget its row."""
        return self._filling.adopt(blob, index, row, buffer)

    def commit(self, rows: Iterable[tuple[ChunkRef, ChunkRow]]) -> frozenset[bytes]:
        """Publish chunks, all in one transaction; return the blobs that have been evicted meanwhile."""
        return self._filling.commit(rows)

    def mark_synced(self, blob: bytes, rows: dict[int, ChunkRow]) -> None:
        """Say that these chunks have reached the disk."""
        self._filling.mark_synced(blob, rows)

    def forget(self, blob: bytes, indices: Iterable[int]) -> None:
        """Take back chunks: their bytes are not what their rows say."""
        self._filling.forget(blob, indices)

    def forget_unsynced(self, blob: bytes) -> None:
        """Take back every chunk that may not have reached the disk."""
        self._filling.forget_unsynced(blob)

    def unsynced(self, blob: bytes) -> dict[int, ChunkRow]:
        """Return the blob's chunks that may still be in memory only."""
        return self._filling.unsynced(blob)

    def blob_row(self, blob: bytes) -> BlobRow | None:
        return self._filling.row(blob)

    def is_whole(self, blob: bytes) -> bool:
        row = self._filling.row(blob)
        return row is not None and row.whole

    def looks_sealed(self, blob: bytes, row: BlobRow) -> bool:
        """Say whether the file of a whole blob is the one that was sealed, not written to since."""
        return looks_sealed(self.layout, blob, row)

    def publish_blobs(self, seals: Iterable[Seal]) -> frozenset[bytes]:
        """Say that blobs are whole: verified, sealed and synced; return those that were lost meanwhile."""
        return self._filling.publish(seals)

    def publish_snapshot(self, snapshot: str) -> Path:
        """Link the tree of a snapshot whose blobs are all whole, and say that it is whole."""
        return self._standing.publish(snapshot)

    # -- upkeep -----------------------------------------------------------------------------------

    def usage(self) -> "Usage":
        return self._upkeep.usage(self.config)

    def holdings(self) -> "list[Holding]":
        """Return every snapshot, least recently used first, and why it may not be evicted."""
        return self._upkeep.holdings()

    def evict(self, *, unused_since_s: float, dry_run: bool, tenant: str | None = None) -> "Eviction":
        """Evict every unpinned snapshot (of a tenant) not used since then (seconds since the epoch), and orphans."""
        return self._upkeep.evict(unused_since_s, dry_run=dry_run, tenant=tenant)

    def verify_blob(self, blob: bytes) -> str | None:
        """Rehash a whole blob; return what is wrong with it, having forgotten it, or None."""
        return self._verifier.verify(blob)

    def blobs(self) -> list[tuple[bytes, BlobRow]]:
        return self._upkeep.blobs()


@contextmanager
def open_node_cache(config: CacheConfig, scan: Scanner) -> Iterator[NodeCache]:
    """Open the node cache; scan finds mounts of its trees in every namespace."""
    cache = NodeCache(config, scan)
    try:
        yield cache
    finally:
        cache.close()
