"""One file of a snapshot under way: its blob, what is fetched, how far its digest has come."""

import threading
from typing import Any

import trio

from bdnfs.cache.blobs import Blob
from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import BdnfsError
from bdnfs.core.ranges import CHUNK_BYTES, chunk_range
from bdnfs.core.units import MIB
from bdnfs.manifest.model import FileEntry, Manifest
from bdnfs.mirror.digests import Digests
from bdnfs.origins.base import Origin
from bdnfs.tiers.base import Cluster, Tier
from bdnfs.volume.digests import check_digest, open_digest

_opening = threading.Lock()
_HASH_BYTES = 1 * MIB
# At most this much at once in a thread that nothing can cancel: a moment, also on a slow disk.
_HASH_CHUNKS = 32


class OpenFile:
    """State of one file. `blob` is open while the file is being filled or read.

    Whoever uses the blob keeps its own reference: `let_go` closes it with the last of them, and a
    thread that still reads from it can't meet another file under the same descriptor.
    """

    __slots__ = (
        "_changed",
        "blob",
        "blob_id",
        "cluster",
        "counted",
        "counted_bytes",
        "digests",
        "entry",
        "error",
        "hashed",
        "hasher",
        "origin",
        "ranged",
        "revision",
        "tenant",
        "tier",
        "unsynced_bytes",
        "whole",
    )  # fmt: skip

    def __init__(
        self,
        entry: FileEntry,
        blob_id: bytes,
        manifest: Manifest,
        tier: Tier,
        origin: Origin,
        *,
        ranged: bool,
        digests: Digests | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        """ranged: its chunks can be had one by one, from upstream or from the mirror; digests: the mirror's of them.

        cluster: who is asked before tier
        """
        self.entry = entry
        self.blob_id = blob_id
        self.ranged = ranged
        self.digests = digests
        self.revision = manifest.revision
        self.tenant = manifest.tenant
        self.tier, self.cluster = tier, cluster
        self.origin = origin
        self.blob: Blob | None = None
        self.whole = entry.size == 0
        self.error: BdnfsError | None = None  # set once: everything after is an error
        self.hasher: Any = None
        self.hashed = 0  # chunks fed to the hasher, in order
        self.unsynced_bytes = 0
        self.counted_bytes = 0  # shown in the progress
        self.counted = False  # as a whole file
        self._changed = trio.Event()

    def open(self, cache: NodeCache) -> Blob:
        """Open the blob if it isn't; blocking. One description: its locks would exclude each other's."""
        with _opening:
            if self.blob is None:
                self.blob = cache.open_blob(self.blob_id, self.entry.size)
            return self.blob

    async def opened(self, cache: NodeCache) -> Blob:
        """Return the open blob; opens it in a thread where it isn't."""
        blob = self.blob
        return blob if blob is not None else await trio.to_thread.run_sync(self.open, cache)

    def let_go(self) -> None:
        """Let the blob be closed as soon as nobody uses it; the next to need it opens it again."""
        self.blob = None

    def digest_of(self, number: int) -> bytes | None:
        """Return the BLAKE3 that the mirror, and with it the peers, give chunk number by; None where it has none."""
        known = self.digests.of(self.entry) if self.digests is not None else None
        return bytes.fromhex(known[number].removeprefix("b3:")) if known else None

    def read(self, cache: NodeCache, offset: int, into: memoryview) -> None:
        """Fill `into` from the blob; blocking. Raises CacheError or SpaceError where the disk lost what was written."""
        blob = self.open(cache)
        blob.read(offset, into)
        if not self.whole:
            self.check_written(cache, blob)
        elif self.entry.chunks == 1:
            self.let_go()  # small files come by the thousand: their descriptors are not kept

    def check_written(self, cache: NodeCache, blob: Blob) -> None:
        """Raise what kept written bytes from the disk, if anything did; they are forgotten then. Blocking."""
        try:
            blob.check_written()
        except BdnfsError as error:
            self.error = error
            cache.forget_unsynced(blob.id)
            raise

    def changed(self) -> None:
        """Wake everyone who waits for a chunk or for the file's end."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_changed(self) -> None:
        await self._changed.wait()

    # -- the digest, fed in order while chunks land out of order -----------------------------------

    def hash_present(self, blob: Blob, buffer: memoryview) -> None:
        """Feed the hasher chunks that are next in order and present, a few of them; blocking."""
        if self.hasher is None:
            self.hasher = open_digest(self.entry)
        stop_at = min(len(blob.present), self.hashed + _HASH_CHUNKS)
        while self.hashed < stop_at and blob.present[self.hashed]:
            start, stop = chunk_range(self.entry.size, self.hashed)
            if self.hasher is not None:
                for offset in range(start, stop, _HASH_BYTES):
                    piece = buffer[: min(_HASH_BYTES, stop - offset)]
                    blob.read(offset, piece)
                    self.hasher.update(piece)
            self.hashed += 1

    def check(self) -> None:
        """Raise IntegrityError unless all that was hashed is what upstream promised."""
        if self.hasher is not None:
            check_digest(self.entry, self.hasher, self.origin.name)

    def restart_hash(self) -> None:
        self.hasher, self.hashed = None, 0


def hash_buffer() -> memoryview:
    return memoryview(bytearray(_HASH_BYTES))


class Buffers:
    """Chunk-sized buffers that are used again; at most as many as fetches run at once."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        if size < CHUNK_BYTES // 2:
            return bytearray(size)
        return self._free.pop() if self._free else bytearray(CHUNK_BYTES)

    def give(self, buffer: bytearray) -> None:
        """Take a buffer back; never one that a cancelled fetch may still write to."""
        if len(buffer) == CHUNK_BYTES:
            self._free.append(buffer)
