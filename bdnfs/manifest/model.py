"""The manifest: a snapshot's immutable listing of paths, sizes, digests and identities."""

from functools import cached_property

import msgspec

from bdnfs.core.ranges import chunk_count


class FileEntry(msgspec.Struct, frozen=True):
    """One file version of a snapshot.

    path:     relative, normalised, `/`-separated, checked by `manifest.paths`
    size:     bytes
    digest:   `sha256:<hex>`, `git-sha1:<hex>` (of "blob <size>\\0" + content) or None
    identity: what changes when upstream's bytes change: an ETag, an object id, a version
    ranged:   upstream answers byte ranges; if not, the file is fetched in one stream
    """

    path: str
    size: int
    digest: str | None = None
    identity: str = ""
    ranged: bool = True

    @property
    def chunks(self) -> int:
        return chunk_count(self.size)


class Manifest(msgspec.Struct, frozen=True, dict=True, omit_defaults=True):
    """A snapshot: one source at one pinned revision, after its patterns.

    source:   the source without its revision, canonical (`hf://org/repo`, `s3://bucket/prefix`)
    origin:   which upstream store the bytes are from (endpoint and repository or bucket)
    revision: a commit, or a digest of the listing where upstream has no revisions
    files:    in path order
    tenant:   whose it is, "" for nobody's in particular; what one tenant has, no other finds
    """

    source: str
    origin: str
    revision: str
    files: tuple[FileEntry, ...]
    tenant: str = ""

    @cached_property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)
