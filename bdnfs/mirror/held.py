"""Which of upstream's files a tenant's mirror holds already, whatever version they came with.

    files/<org>/<namespace>/<hex>.json    one for each larger file: its chunk or chunkmap

Written as soon as a file is all there and durable, so an ingest that was killed goes on with the next file.
"""

from collections.abc import Container, Iterable, Iterator

import msgspec
from blake3 import blake3

from bdnfs.core.errors import UNREADABLE, NotFoundError
from bdnfs.core.units import MIB
from bdnfs.manifest.model import FileEntry, Manifest
from bdnfs.mirror.store import Store
from bdnfs.mirror.versions import JSON_TYPE, VersionRow, Versions
from bdnfs.volume.records import VolumeFile

# Below this, asking whether it is there costs about as much as moving it.
_FILE_BYTES_MIN = 1 * MIB
_BYTES_MAX = 1 << 16


class HeldFile(msgspec.Struct, frozen=True):
    """Digests of the one chunk, or of the chunkmap, of a file of size bytes."""

    size: int
    chunk: str | None = None
    chunkmap: str | None = None

    def placed(self, file: FileEntry) -> VolumeFile:
        return VolumeFile(file.path, file.size, self.chunk, self.chunkmap)


def version_key(origin: str, file: FileEntry) -> bytes:
    """Return what names a file version: upstream's digest of it, else where it is and its identity there."""
    version = file.digest or f"{origin}\0{file.path}\0{file.identity}"
    return blake3(f"{version}\0{file.size}".encode()).digest()


class HeldFiles:
    """The files a namespace holds. Blocking."""

    def __init__(self, store: Store, org: str, namespace: str) -> None:
        self._store = store
        self.prefix = f"files/{org}/{namespace}/"
        self._known: dict[bytes, HeldFile] = {}

    def learn(self, versions: Versions, row: VersionRow) -> None:
        """Take in the files of a version: what a new revision has in common with it is found without asking."""
        listing = versions.listing(row)
        files = {file.path: file for file in versions.manifest(row).files}
        for entry in listing.files:
            file = files.get(entry.path)
            if file is not None and file.size == entry.size:
                held = HeldFile(file.size, file.chunk, file.chunkmap)
                self._known[version_key(listing.origin, entry)] = held

    def find(self, origin: str, file: FileEntry) -> HeldFile | None:
        """Return what the mirror has of the file, or None."""
        name = version_key(origin, file)
        found = self._known.get(name)
        if found is None and file.size >= _FILE_BYTES_MIN:
            found = self._at(self.key(name))
        return found if found is not None and found.size == file.size else None

    def remember(self, listing: Manifest, file: FileEntry, held: HeldFile) -> None:
        """Say that all of the file's objects are there, and durable."""
        name = version_key(listing.origin, file)
        self._known[name] = held
        if file.size >= _FILE_BYTES_MIN:
            self._store.put(self.key(name), msgspec.json.encode(held), JSON_TYPE, "any")

    def unused(self, live: Container[str]) -> Iterator[str]:
        """Yield the key of every file whose objects are not all among the live ones."""
        for found in self._store.list(self.prefix):
            held = self._at(found.key)
            if held is None or (held.chunk or held.chunkmap) not in live:
                yield found.key

    def forget(self, origin: str, files: Iterable[FileEntry]) -> None:
        """Take back what was said of files: something of theirs is damaged."""
        names = [version_key(origin, file) for file in files]
        for name in names:
            self._known.pop(name, None)
        self._store.delete([self.key(name) for name in names])

    def key(self, name: bytes) -> str:
        return f"{self.prefix}{name.hex()}.json"

    def _at(self, key: str) -> HeldFile | None:
        try:
            return msgspec.json.decode(self._store.get(key, _BYTES_MAX).data, type=HeldFile)
        except NotFoundError:
            return None
        except UNREADABLE:
            return None  # torn: the file is brought again, and this written anew
