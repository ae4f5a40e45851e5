"""A volume of the mirror as a source: `bdn:<namespace>/<volume>[:tag|@digest][/path]`."""

from collections.abc import Iterator

from bdnfs.core.errors import NotFoundError, UpstreamError
from bdnfs.core.ranges import chunk_range, chunks_of
from bdnfs.manifest.model import FileEntry
from bdnfs.manifest.sizes import check_size
from bdnfs.mirror.digests import Digests
from bdnfs.mirror.held import HeldFile
from bdnfs.mirror.versions import Versions
from bdnfs.spec.volume import VolumeRef
from bdnfs.volume.containment import resolve_link
from bdnfs.volume.digests import content_digest
from bdnfs.volume.records import Version, VolumeFile

# What our own manifests say made them: their chunkmaps are canonical.
_OURS = "bdnfs"


class VolumeOrigin:
    """An origin (`bdnfs.origins.base`) whose revisions are the digests of versions."""

    def __init__(self, versions: Versions, ref: VolumeRef) -> None:
        self._versions, self._ref = versions, ref
        self._contents = versions.contents(ref.namespace)
        self._digests: Digests | None = None
        self.name = f"volumes of {versions.org} in {versions.store.name}"

    def resolve(self, revision: str | None) -> str:
        """Return the digest of the version that the source names now; revision is part of the source."""
        return self._versions.resolve(self._ref).row.digest

    def list(self, revision: str | None) -> Iterator[FileEntry]:
        """Yield the files at or below the source's path, links followed; each by its content's digest."""
        version = self._contents.manifest(revision or self.resolve(None))
        files = {file.path: file for file in version.files}
        for link in version.links:
            target = resolve_link(link.path, {each.path: each.target for each in version.links})
            if target not in files:
                raise UpstreamError(
                    f"{self._ref}: the link {link.path!r} leads to {link.target!r}, which is no file of the version, "
                    "and links to directories are not followed; leave it out with ignore_patterns"
                )
            files[link.path] = files[target]._replace(path=link.path)
        chosen = self._chosen(files)
        self._digests = Digests(
            self._contents,
            {path: HeldFile(file.size, file.chunk, file.chunkmap) for path, file in chosen.items()},
        )
        for path, file in sorted(chosen.items()):
            yield self._entry(version, path, file)

    def read(self, revision: str | None, entry: FileEntry, start: int, into: memoryview) -> None:
        """Fill `into` from byte start of a file that was listed."""
        digests = self._listed(revision)
        if not digests.holds(entry):
            raise NotFoundError(f"{self._ref}: {revision} has no file {entry.path!r} of {entry.size} bytes")
        stop = start + len(into)
        for number in chunks_of(start, stop):
            first, last = chunk_range(entry.size, number)
            if start <= first and last <= stop:
                digests.fill(entry, number, into[first - start : last - start])
                continue
            whole = memoryview(bytearray(last - first))
            digests.fill(entry, number, whole)
            begin, end = max(first, start), min(last, stop)
            into[begin - start : end - start] = whole[begin - first : end - first]

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        """Yield the whole file, chunk by chunk."""
        for number in range(entry.chunks):
            first, last = chunk_range(entry.size, number)
            piece = memoryview(bytearray(last - first))
            self.read(revision, entry, first, piece)
            yield piece

    def digests(self, revision: str | None) -> Digests:
        """Return the digests of the chunks of the source's files, by which peers have them too."""
        return self._listed(revision)

    def close(self) -> None:
        self._versions.store.close()

    def _listed(self, revision: str | None) -> Digests:
        if self._digests is None:
            for _ in self.list(revision):
                pass
        assert self._digests is not None
        return self._digests

    def _chosen(self, files: dict[str, VolumeFile]) -> dict[str, VolumeFile]:
        path = self._ref.path
        if not path:
            return files
        if path in files:
            return {path.rpartition("/")[2]: files[path]}
        below = {name[len(path) + 1 :]: file for name, file in files.items() if name.startswith(f"{path}/")}
        if not below:
            raise NotFoundError(f"{self._ref}: the version has nothing at {path!r}; check the path")
        return below

    def _entry(self, version: Version, path: str, file: VolumeFile) -> FileEntry:
        size = check_size(file.size, path, f"listing {self._ref}")
        if file.chunk is not None:
            return FileEntry(path, size, file.chunk, file.chunk)
        chunkmap = file.chunkmap or ""
        if version.provenance.get("generator") == _OURS:
            return FileEntry(path, size, f"b3map:{chunkmap.removeprefix('b3:')}", chunkmap)
        # Of other writers only the chunks count: their chunkmaps may be written otherwise.
        chunks = self._contents.chunkmap(chunkmap, size)
        digest = content_digest(size, [bytes.fromhex(chunk.digest.removeprefix("b3:")) for chunk in chunks])
        return FileEntry(path, size, digest, chunkmap)
