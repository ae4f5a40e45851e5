"""One snapshot on its way into the mirror: its chunks as they come, then its files, then its version.

Blocking, of several threads' use; who fetches is `bdnfs.delivery`. Whatever order things come in, and wherever it
is killed: objects name their own bytes, a file is remembered once its objects are durable, and the
version comes last.
"""

import threading
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from bdnfs.core.errors import IntegrityError, NotFoundError
from bdnfs.core.steps import reach
from bdnfs.core.units import MIB
from bdnfs.manifest.model import FileEntry, Manifest
from bdnfs.mirror.held import HeldFile, HeldFiles, version_key
from bdnfs.mirror.versions import VersionRow, Versions
from bdnfs.spec.volume import VolumeRef
from bdnfs.volume.records import CHUNK_TYPE, CHUNKMAP_TYPE, chunkmap_of, digest_of

# Enough that a flush is worth its wait, little enough that what a crash costs is brought again in seconds.
_FLUSH_BYTES = 256 * MIB
_LOOKS_AT_ONCE = 16
# What a wrong guess costs is one chunk sent in vain; what a look costs, a round trip for each chunk.
_MOVED_IN_A_ROW = 8


class Ingest:
    """Takes the files of a listing into a volume. moved_bytes: content put, not what was there.

    moved: upstream has just said that the branch is at this revision; else only a branch that is not there yet
    is made to name it
    """

    def __init__(
        self,
        versions: Versions,
        volume: VolumeRef,
        listing: Manifest,
        branch: str | None,
        patterns: str,
        *,
        moved: bool = True,
    ) -> None:
        self._versions, self._volume = versions, volume
        self._branch, self._patterns, self._moved = branch, patterns, moved
        self.listing = listing
        self.contents = versions.contents(volume.namespace)
        self._held = HeldFiles(versions.store, versions.org, volume.namespace)
        self._files: dict[bytes, HeldFile] = {}
        self._fresh: list[tuple[FileEntry, HeldFile]] = []
        self._wrong: Container[str] = ()
        self._put: set[str] = set()  # chunks known to be there
        self._lock = threading.Lock()
        self._moved_in_a_row = 0
        self.moved_bytes = 0

    def forget(self, paths: Container[str]) -> None:
        """Bring these files anew: something of theirs is damaged."""
        self._wrong = paths
        self._held.forget(self.listing.origin, (file for file in self.listing.files if file.path in paths))

    def look(self) -> dict[str, HeldFile]:
        """Find which files the mirror holds already; return them by their path."""
        with suppress(NotFoundError, IntegrityError):  # a first version; or one that is damaged: no help
            self._held.learn(self._versions, self._versions.resolve(self._volume).row)
        found = {}
        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            for file, held in zip(self.listing.files, pool.map(self._find, self.listing.files), strict=True):
                if held is not None:
                    self._files[self._key(file)] = found[file.path] = held
        return found

    def _find(self, file: FileEntry) -> HeldFile | None:
        return None if file.path in self._wrong else self._held.find(self.listing.origin, file)

    def has(self, file: FileEntry) -> bool:
        return self._key(file) in self._files

    def put_chunk(self, data: bytes | memoryview) -> str:
        """Bring a chunk into the mirror unless it is there; return its digest."""
        digest = digest_of(data)
        if not self.has_put(digest):
            moved = self._is_new and self.contents.create(digest, data, CHUNK_TYPE)
            moved = moved or self.contents.put(digest, data, CHUNK_TYPE)
            with self._lock:
                self._put.add(digest)
                self._moved_in_a_row = self._moved_in_a_row + 1 if moved else 0
                self.moved_bytes += len(data) if moved else 0
        reach("ingest:chunk-put")
        return digest

    @property
    def _is_new(self) -> bool:
        """Whether all that came last was new: then the next is not looked for before it is sent."""
        with self._lock:
            return self._moved_in_a_row >= _MOVED_IN_A_ROW

    def has_put(self, digest: str) -> bool:
        with self._lock:
            return digest in self._put

    def put_file(self, file: FileEntry, chunks: Sequence[str]) -> None:
        """Say that a file's bytes are verified and its chunks, by their digests, all put."""
        if file.size == 0:
            held = HeldFile(0, chunk=self.put_chunk(b""))
        elif len(chunks) == 1:
            held = HeldFile(file.size, chunk=chunks[0])
        else:
            data = chunkmap_of(file.size, chunks)
            held = HeldFile(file.size, chunkmap=digest_of(data))
            self.contents.put(digest_of(data), data, CHUNKMAP_TYPE)
            reach("ingest:chunkmap-put")
        with self._lock:
            self._files[self._key(file)] = held
            self._fresh.append((file, held))
            due = sum(fresh.size for fresh, _ in self._fresh) >= _FLUSH_BYTES
        if due:
            self._remember()

    def publish(self) -> VersionRow:
        """Commit the version: every file of the listing is there. Return its row."""
        self._remember()
        files = [self._files[self._key(file)].placed(file) for file in self.listing.files]
        return self._versions.publish(
            self._volume, self.listing, files, self._branch, self._patterns, moved=self._moved
        )

    def _remember(self) -> None:
        with self._lock:
            fresh, self._fresh = self._fresh, []
        if fresh:
            self._versions.store.flush()
            reach("ingest:flushed")
        for file, held in fresh:
            self._held.remember(self.listing, file, held)
        reach("ingest:remembered")

    def _key(self, file: FileEntry) -> bytes:
        return version_key(self.listing.origin, file)
