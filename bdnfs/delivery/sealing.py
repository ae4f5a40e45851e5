"""The end of a file: its digest checked, its bytes synced, its blob sealed and published.

One process at a time does this for a blob (the seal lock); the others wait for its row. Hashing
starts with the first chunk and runs beside the fetching. Sealed files are synced in batches.
"""

import os

import trio

from bdnfs.cache.blobs import Blob
from bdnfs.cache.node import NodeCache
from bdnfs.cache.rows import Seal
from bdnfs.core.errors import BdnfsError, CacheError, IntegrityError
from bdnfs.core.steps import reach
from bdnfs.core.syncing import syncfs
from bdnfs.core.units import MIB
from bdnfs.delivery.files import OpenFile, hash_buffer
from bdnfs.delivery.progress import Progress
from bdnfs.delivery.stall import Stall

# Enough that a sync is worth its wait, little enough that a crash costs seconds of fetching.
SYNC_BYTES = 256 * MIB
# From here on one syncfs beats syncing file by file (0.5 ms each on an idle NVMe).
SYNCFS_FILES = 8
# What another process that hashes and syncs is granted, beside the time in which nothing need move.
_SEAL_BYTES_PER_S = 50 * MIB
_POLL_S = 0.02
_POLL_MAX_S = 0.5


class _Sealed:
    def __init__(self, blob: Blob, digest: str | None, tenant: str) -> None:
        self.blob = blob
        self.digest = digest
        self.tenant = tenant
        self.done = trio.Event()
        self.error: BdnfsError | None = None


class Sealer:
    """Verifies, syncs and publishes blobs."""

    def __init__(
        self,
        cache: NodeCache,
        nursery: trio.Nursery,
        progress: Progress,
        busy_timeout_s: float,
        sync_bytes: int = SYNC_BYTES,
    ) -> None:
        self._cache = cache
        self._nursery = nursery
        self._progress = progress
        self._busy_timeout_s = busy_timeout_s
        self._sync_bytes = sync_bytes
        self._queue: list[_Sealed] = []
        self._wanted = trio.Event()
        self._syncing: set[bytes] = set()
        # Opened before the first write, so that it sees every write error of the filesystem.
        self._filesystem_fd = os.open(cache.layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        nursery.start_soon(self._publish)

    def close(self) -> None:
        os.close(self._filesystem_fd)

    async def finish(self, file: OpenFile) -> None:
        """Return once the file is whole: verified, synced, published (by us or by another process).

        Follows the file from its first chunk; raises IntegrityError where upstream's digest is
        not met (the file is forgotten), CacheError where its bytes don't reach the disk, or where
        another process that is to publish it doesn't get on.
        """
        pause_s = _POLL_S
        blob = await file.opened(self._cache)
        stall = Stall(blob.path, self._busy_timeout_s + file.entry.size / _SEAL_BYTES_PER_S)
        while not file.whole:
            if file.error is not None:
                raise file.error
            if await trio.to_thread.run_sync(self._cache.is_whole, file.blob_id):
                self._whole(file, blob)
            elif blob.claim_seal():
                try:
                    await self._seal(file, blob)
                finally:
                    blob.release_seal()
            else:
                if not blob.complete:
                    stall.moved()  # whether chunks come is for the fill to judge
                stall.check("the end")
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _POLL_MAX_S)

    def _whole(self, file: OpenFile, blob: Blob) -> None:
        file.whole = True
        self._progress.whole(file)
        blob.present[:] = b"\1" * len(blob.present)
        # Files come by the thousand: the descriptors of those that are done are not kept.
        file.let_go()
        file.changed()

    async def _seal(self, file: OpenFile, blob: Blob) -> None:
        """With the seal lock held: hash along until the last chunk is there, then check and publish."""
        if await trio.to_thread.run_sync(self._cache.is_whole, file.blob_id):
            self._whole(file, blob)
            return
        await self._hash_along(file, blob)
        try:
            file.check()
        except IntegrityError as error:
            # Upstream's fault, unless the disk has lost what was written to it.
            found = await trio.to_thread.run_sync(self._sync_error, blob) or error
            await self._drop(file, blob, found)
            raise found from None
        reach("blob:verified")
        sealed = _Sealed(blob, file.entry.digest, file.tenant)
        self._queue.append(sealed)
        self._wanted.set()
        await sealed.done.wait()
        if sealed.error is not None:
            file.error = sealed.error
            file.changed()
            raise sealed.error
        self._whole(file, blob)

    async def _hash_along(self, file: OpenFile, blob: Blob) -> None:
        """Feed the digest with each chunk as it comes; sync a long file now and then."""
        buffer = hash_buffer()
        file.restart_hash()
        while file.hashed < len(blob.present):
            if blob.present[file.hashed]:
                await trio.to_thread.run_sync(file.hash_present, blob, buffer)
            else:
                await file.wait_changed()
            if file.unsynced_bytes >= self._sync_bytes and file.blob_id not in self._syncing:
                self._nursery.start_soon(self._sync_early, file, blob)
            if file.error is not None:
                raise file.error

    async def _drop(self, file: OpenFile, blob: Blob, error: BdnfsError) -> None:
        """Wrong bytes: nothing of the file stays, and whoever reads it from now on gets an error."""
        file.error = error
        indices = list(range(len(blob.present)))
        blob.present[:] = bytes(len(blob.present))
        file.changed()
        await trio.to_thread.run_sync(self._cache.forget, blob.id, indices)

    async def _sync_early(self, file: OpenFile, blob: Blob) -> None:
        """Bring a long file to the disk while it is still coming, so that a crash loses little."""
        self._syncing.add(file.blob_id)
        file.unsynced_bytes = 0
        try:
            await trio.to_thread.run_sync(self._sync_blob, blob)
        except BdnfsError as error:
            file.error = error
            file.changed()
        finally:
            self._syncing.discard(file.blob_id)

    def _sync_error(self, blob: Blob) -> BdnfsError | None:
        try:
            blob.sync()
        except BdnfsError as error:
            return error
        return None

    def _sync_blob(self, blob: Blob) -> None:
        rows = self._cache.unsynced(blob.id)
        try:
            blob.sync()
        except BdnfsError:
            # A write error shows once, and later reads may be zeros: none of these can be trusted.
            self._cache.forget_unsynced(blob.id)
            raise
        reach("sync:synced")
        self._cache.mark_synced(blob.id, rows)
        reach("sync:committed")

    async def _publish(self) -> None:
        """Sync and publish what is queued, all of it at once, until cancelled."""
        while True:
            await self._wanted.wait()
            batch, self._queue, self._wanted = self._queue, [], trio.Event()
            try:
                await trio.to_thread.run_sync(self._publish_batch, batch)
            except BdnfsError as error:
                for sealed in batch:
                    sealed.error = error
            except BaseException as error:
                for sealed in batch:
                    sealed.error = CacheError(f"{sealed.blob.path}: could not be published ({error!r})")
                raise
            finally:
                for sealed in batch:
                    sealed.done.set()

    def _publish_batch(self, batch: list[_Sealed]) -> None:
        seals = []
        for sealed in batch:
            inode, mtime_ns = sealed.blob.seal()
            seals.append(Seal(sealed.blob.id, sealed.digest, inode, mtime_ns, sealed.tenant))
        reach("blob:sealed")
        try:
            if len(batch) >= SYNCFS_FILES:
                _syncfs(self._filesystem_fd)
            else:
                for sealed in batch:
                    sealed.blob.sync()
        except BdnfsError:
            for sealed in batch:
                sealed.blob.failed = True
                self._cache.forget_unsynced(sealed.blob.id)
            raise
        lost = self._cache.publish_blobs(seals)
        for sealed in batch:
            if sealed.blob.id in lost:
                sealed.error = CacheError(
                    f"{sealed.blob.path}: was evicted or damaged while it was being sealed; try again"
                )


def _syncfs(fd: int) -> None:
    try:
        syncfs(fd)
    except OSError as error:
        raise CacheError(
            f"the cache's filesystem can't be synced ({error.strerror}); check the disk, then try again"
        ) from error
