"""`mirror verify`: every object that a version names is read, and is what its name says."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from bdnfs.core.errors import IntegrityError, NotFoundError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.mirror.contents import Contents
from bdnfs.mirror.versions import VersionRow, Versions
from bdnfs.volume.records import StoredChunk, Version, VolumeFile

_AT_ONCE = 8

T = TypeVar("T")
U = TypeVar("U")


@dataclass
class Damage:
    """What is wrong with one version.

    records: the digests of what of its own is damaged or missing: its manifest, its listing
    chunkmaps, chunks: the paths of files, by the digest of a damaged object of theirs
    """

    row: VersionRow
    records: list[str] = field(default_factory=list)
    chunkmaps: dict[str, list[str]] = field(default_factory=dict)
    chunks: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.said)


class Checker:
    """Checks versions; an object that several have in common is read once. Blocking.

    checked: hears the size of each object that was right, in bytes
    """

    def __init__(self, versions: Versions, checked: Callable[[int], None]) -> None:
        self._versions = versions
        self._checked = checked
        self._known: dict[tuple[str, str], str | None] = {}

    def check(self, row: VersionRow) -> Damage:
        """Return what is wrong with a version: nothing, mostly. Raises what the store raises when it is away."""
        damage = Damage(row)
        contents = self._versions.contents(row.namespace)
        self._records(row.listing, damage, lambda: self._versions.listing(row))
        manifest = self._records(row.digest, damage, lambda: contents.manifest(row.digest))
        if manifest is None:
            return damage
        uses: dict[str, tuple[int, list[tuple[str, int]]]] = {}
        for file, chunks in self._chunks(contents, manifest, damage):
            for number, chunk in enumerate(chunks):
                uses.setdefault(chunk.digest, (chunk.length, []))[1].append((file.path, number))
        todo = ((digest, length) for digest, (length, _) in uses.items())
        for digest, why in _side_by_side(lambda item: (item[0], self._chunk(contents, *item)), todo):
            if why is not None:
                damage.chunks[digest] = uses[digest][1]
                damage.said.append(why)
        return damage

    def _records(self, digest: str, damage: Damage, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (IntegrityError, NotFoundError) as error:
            damage.records.append(digest)
            damage.said.append(str(error))
            return None

    def _chunks(
        self, contents: Contents, manifest: Version, damage: Damage
    ) -> Iterator[tuple[VolumeFile, list[StoredChunk]]]:
        def read(file: VolumeFile) -> tuple[VolumeFile, list[StoredChunk] | Exception]:
            if file.chunk is not None:
                return file, [StoredChunk(file.chunk, 0, file.size)]
            try:
                return file, contents.chunkmap(file.chunkmap or "", file.size)
            except (IntegrityError, NotFoundError) as error:
                return file, error

        for file, found in _side_by_side(read, manifest.files):
            if isinstance(found, Exception):
                damage.chunkmaps.setdefault(file.chunkmap or "", []).append(file.path)
                damage.said.append(str(found))
            else:
                yield file, found

    def _chunk(self, contents: Contents, digest: str, length: int) -> str | None:
        name = contents.namespace, digest
        if name not in self._known:
            try:
                contents.fill(digest, memoryview(bytearray(min(length, CHUNK_BYTES))))
                self._known[name] = None
                self._checked(length)
            except (IntegrityError, NotFoundError) as error:
                self._known[name] = str(error)
        return self._known[name]


def _side_by_side(work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yield what work returns for each item, in their order, a few at a time."""
    left = iter(items)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while batch := list(islice(left, 4 * _AT_ONCE)):
            yield from pool.map(work, batch)
