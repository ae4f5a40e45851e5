"""The versions of a tenant's volumes: found by revision, tag, head or digest, published last.

Beside the volume format, which says nothing of names (docs/format.md, "The mirror"):

    volumes/<org>/<namespace>/<volume>/versions/<hex>.json    one for each version: its row
                                       revisions/<hex>.json   the same row, by upstream's revision
                                       listings/<hex>.json    upstream's listing: its digests and identities
                                       branches/<hex>.json    the version a branch was mirrored at last, by its name
                                       tags/<tag>.json, head.json
"""

import time
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeVar

import msgspec
from blake3 import blake3

from bdnfs.core.errors import UNREADABLE, IntegrityError, NotFoundError, UnavailableError
from bdnfs.core.steps import reach
from bdnfs.manifest.model import Manifest
from bdnfs.mirror.contents import Contents
from bdnfs.mirror.store import Store
from bdnfs.spec.volume import VolumeRef
from bdnfs.volume.names import tag_of
from bdnfs.volume.records import MANIFEST_TYPE, Version, VolumeFile, digest_of, encode_manifest

JSON_TYPE = "application/json"
_ROW_BYTES_MAX = 1 << 20
_LISTING_BYTES_MAX = 1 << 30
_HEAD_ATTEMPTS = 10

T = TypeVar("T")


class VersionRow(msgspec.Struct, frozen=True):
    """One version. Times are seconds since the epoch, sizes bytes.

    digest:   of its manifest: `b3:` and 64 hex digits
    listing:  likewise, of upstream's listing
    patterns: what of the source it is, as in the node's index
    branch:   the branch, or upstream's tag, that it was mirrored by
    sequence: counts a volume's versions from 1
    """

    namespace: str
    volume: str
    digest: str
    listing: str
    source: str
    revision: str
    patterns: str
    branch: str | None
    sequence: int
    created_s: float
    files: int
    size: int

    @property
    def ref(self) -> VolumeRef:
        """Its volume, at exactly this version."""
        return VolumeRef(self.namespace, self.volume, digest=self.digest.removeprefix("b3:"))


class Pointer(msgspec.Struct, frozen=True):
    """What `head.json` and `tags/<tag>.json` hold."""

    digest: str
    sequence: int


class Resolved(NamedTuple):
    """A version, and what named it."""

    row: VersionRow
    by: Literal["head", "tag", "pin"]


class Versions:
    """The versions of one tenant (org). Blocking; every method may raise what its store raises."""

    def __init__(self, store: Store, org: str) -> None:
        self.store, self.org = store, org

    def contents(self, namespace: str) -> Contents:
        return Contents(self.store, self.org, namespace)

    # -- reading ------------------------------------------------------------------------------------

    def find(self, volume: VolumeRef, revision: str) -> VersionRow | None:
        """Return the volume's version that is upstream's revision, or None: also where its own row is lost."""
        place = self._place(volume)
        row = self.row_at(f"{place}/revisions/{_name(revision)}.json")
        return self.row_at(f"{place}/versions/{_hex(row.digest)}.json") if row else None

    def resolve(self, ref: VolumeRef) -> Resolved:
        """Return the version ref names; NotFoundError if there is none, or more than one."""
        place = self._place(ref)
        if ref.digest is not None:
            return Resolved(self._by_digest(ref, place), "pin")
        pointer = self._pointer(f"{place}/tags/{ref.tag}.json" if ref.tag else f"{place}/head.json")
        row = self.row_at(f"{place}/versions/{_hex(pointer.digest)}.json") if pointer else None
        if row is None:
            raise NotFoundError(
                f"{ref}: {self.store.name} has no such {'tag' if ref.tag else 'volume'} of the tenant {self.org}; "
                "`bdnfs mirror ls` lists what is there"
            )
        return Resolved(row, "tag" if ref.tag else "head")

    def last(self, volume: VolumeRef, branch: str | None) -> VersionRow | None:
        """Return the version that a branch (None: the default one) was mirrored at last, or None.

        Neither head nor tag can tell: any branch moves the head, and two branches may share a tag.
        """
        place = self._place(volume)
        pointer = self._pointer(f"{place}/{_branch(branch)}")
        return self.row_at(f"{place}/versions/{_hex(pointer.digest)}.json") if pointer else None

    def all(self, namespace: str = "", volume: str = "") -> Iterator[VersionRow]:
        """Yield every version (of a namespace, of a volume)."""
        prefix = "/".join(filter(None, ("volumes", self.org, namespace, volume))) + "/"
        for found in self.store.list(prefix):
            if "/versions/" in found.key:
                row = self.row_at(found.key)
                if row is not None:
                    yield row

    def tags(self, volume: VolumeRef) -> dict[str, str]:
        """Return the digest that each of a volume's tags names."""
        prefix = f"{self._place(volume)}/tags/"
        found = self._pointers(prefix)
        return {key.removeprefix(prefix).removesuffix(".json"): found[key] for key in sorted(found)}

    def manifest(self, row: VersionRow) -> Version:
        return self.contents(row.namespace).manifest(row.digest)

    def listing(self, row: VersionRow) -> Manifest:
        """Return upstream's listing as it was mirrored; its files are those of the version, in path order.

        Raises IntegrityError where it is not what the version was made from.
        """
        key = self.listing_key(row)
        data = self.store.get(key, _LISTING_BYTES_MAX).data
        if digest_of(data) != row.listing:
            raise IntegrityError(
                f"{self.store.name}: {key} does not hold the bytes that its name says; "
                "`bdnfs mirror rm` the version, and mirror its source again"
            )
        listing = _decoded(data, Manifest)
        if listing is None:
            raise IntegrityError(f"{self.store.name}: {key} is no listing; mirror its source again")
        return listing

    def listing_key(self, row: VersionRow) -> str:
        return f"{self._place(row.ref)}/listings/{_hex(row.listing)}.json"

    # -- writing ------------------------------------------------------------------------------------

    def publish(
        self,
        volume: VolumeRef,
        listing: Manifest,
        files: list[VolumeFile],
        branch: str | None,
        patterns: str,
        *,
        moved: bool = True,
    ) -> VersionRow:
        """Commit a version whose objects are all there; files are the listing's, in its order. moved: as in `point`.

        The manifest comes after every object it names is durable, the names after the manifest.
        """
        data = encode_manifest(files, provenance(listing))
        told = msgspec.json.encode(listing)
        place, contents = self._place(volume), self.contents(volume.namespace)
        self.store.flush()
        contents.put(digest_of(data), data, MANIFEST_TYPE)
        reach("ingest:manifest-put")
        self.store.put(f"{place}/listings/{_hex(digest_of(told))}.json", told, JSON_TYPE, "absent")
        self.store.flush()
        head = self._pointer(f"{place}/head.json")
        row = VersionRow(
            namespace=volume.namespace,
            volume=volume.volume,
            digest=digest_of(data),
            listing=digest_of(told),
            source=listing.source,
            revision=listing.revision,
            patterns=patterns,
            branch=branch,
            sequence=head.sequence + 1 if head else 1,
            created_s=time.time(),
            files=len(files),
            size=listing.total_bytes,
        )
        key = f"{place}/versions/{_hex(row.digest)}.json"
        if not self.store.put(key, msgspec.json.encode(row), JSON_TYPE, "absent"):
            known = self.row_at(key)  # the same row by both names: its sequence is what moves the head
            if known is None:
                self.store.put(key, msgspec.json.encode(row), JSON_TYPE, "any")
            row = known or row
        reach("ingest:version-put")
        encoded = msgspec.json.encode(row)
        self.store.put(f"{place}/revisions/{_name(row.revision)}.json", encoded, JSON_TYPE, "any")
        reach("ingest:revision-put")
        self.point(volume, row, branch, moved=moved)
        self.store.flush()
        reach("ingest:published")
        return row

    def name(self, row: VersionRow) -> None:
        """Write what leads to a version again: upstream's revision, its branch, the head if it is the last."""
        volume = row.ref._replace(digest=None)
        key = f"{self._place(volume)}/revisions/{_name(row.revision)}.json"
        self.store.put(key, msgspec.json.encode(row), JSON_TYPE, "any")
        self.point(volume, row, row.branch, moved=False)

    def point(self, volume: VolumeRef, row: VersionRow, branch: str | None, *, moved: bool) -> None:
        """Make the branch and its tag name a version, and the head, unless it names a later one.

        moved: upstream's branch is at it now; if not so (a lock's old revision), only where there is none yet.
        """
        place = self._place(volume)
        self._advance(f"{place}/head.json", row)
        pointer = msgspec.json.encode(Pointer(row.digest, row.sequence))
        expected = "any" if moved else "absent"
        self.store.put(f"{place}/{_branch(branch)}", pointer, JSON_TYPE, expected)
        if branch is not None:
            self.store.put(f"{place}/tags/{tag_of(branch)}.json", pointer, JSON_TYPE, expected)

    def remove(self, row: VersionRow) -> None:
        """Forget a version, its tags with it; the head goes back to the last that is left. `gc` takes its objects."""
        volume = row.ref._replace(digest=None)
        place = self._place(volume)
        left = [each for each in self.all(row.namespace, row.volume) if each.digest != row.digest]
        pointers = self._pointers(f"{place}/tags/") | self._pointers(f"{place}/branches/")
        keys = [key for key, digest in pointers.items() if digest == row.digest]
        head = self._pointer(f"{place}/head.json")
        if head and head.digest == row.digest:
            if left:
                last = max(left, key=lambda each: each.sequence)
                pointer = msgspec.json.encode(Pointer(last.digest, last.sequence))
                self.store.put(f"{place}/head.json", pointer, JSON_TYPE, "any")
            else:
                keys.append(f"{place}/head.json")
        keys.append(f"{place}/revisions/{_name(row.revision)}.json")
        if not any(each.listing == row.listing for each in left):
            keys.append(f"{place}/listings/{_hex(row.listing)}.json")
        self.store.delete(keys)
        self.store.delete([f"{place}/versions/{_hex(row.digest)}.json"])
        self.store.flush()

    # -- the rest -----------------------------------------------------------------------------------

    def _advance(self, key: str, row: VersionRow) -> None:
        pointer = Pointer(row.digest, row.sequence)
        for _ in range(_HEAD_ATTEMPTS):
            version = "absent"
            try:
                held = self.store.get(key, _ROW_BYTES_MAX)
            except NotFoundError:
                pass
            else:
                known, version = _decoded(held.data, Pointer), held.version
                if known is not None and (known.sequence > row.sequence or known == pointer):
                    return
            if self.store.put(key, msgspec.json.encode(pointer), JSON_TYPE, version):
                return
        raise UnavailableError(f"{self.store.name}: {key} is being changed by others all the time; try again")

    def _by_digest(self, ref: VolumeRef, place: str) -> VersionRow:
        prefix = f"{place}/versions/"
        begins = f"{prefix}{ref.digest}"
        keys = [found.key for found in self.store.list(prefix) if found.key.startswith(begins)]
        row = self.row_at(keys[0]) if len(keys) == 1 else None
        if row is None:
            raise NotFoundError(
                f"{ref}: {len(keys) or 'no'} versions of the tenant {self.org} in {self.store.name} begin so; "
                "`bdnfs mirror ls` lists what is there"
            )
        return row

    def _place(self, volume: VolumeRef) -> str:
        return f"volumes/{self.org}/{volume.namespace}/{volume.volume}"

    def row_at(self, key: str) -> VersionRow | None:
        """Return the row at a key; None where there is none, or a torn one (`bdnfs.mirror.mending`)."""
        try:
            return _decoded(self.store.get(key, _ROW_BYTES_MAX).data, VersionRow)
        except NotFoundError:
            return None

    def pointed_at(self, key: str) -> str | None:
        """Return the digest that the pointer at a key names; None where there is none, or a torn one."""
        pointer = self._pointer(key)
        return pointer.digest if pointer else None

    def _pointer(self, key: str) -> Pointer | None:
        try:
            return _decoded(self.store.get(key, _ROW_BYTES_MAX).data, Pointer)
        except NotFoundError:
            return None

    def _pointers(self, prefix: str) -> dict[str, str]:
        """Return the digest that each pointer below prefix names, by its key."""
        found = {each.key: self._pointer(each.key) for each in self.store.list(prefix)}
        return {key: pointer.digest for key, pointer in found.items() if pointer}


def _decoded(data: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE:
        return None


def provenance(listing: Manifest) -> dict[str, str]:
    """Return what a manifest says of where it is from; the same each time, so without a time."""
    return {
        "generator": "bdnfs",
        "origin": listing.origin,
        "revision": listing.revision,
        "source": listing.source,
    }


def _name(revision: str) -> str:
    return blake3(revision.encode()).hexdigest(16)


def _branch(branch: str | None) -> str:
    return f"branches/{_name(branch or '')}.json"


def _hex(digest: str) -> str:
    return digest.removeprefix("b3:")
