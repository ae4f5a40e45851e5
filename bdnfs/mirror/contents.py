"""The objects of one namespace: chunks, chunkmaps and manifests under their BLAKE3, checked as they come."""

from blake3 import blake3

from bdnfs.core.errors import IntegrityError, NotFoundError, UpstreamError
from bdnfs.mirror.store import Store
from bdnfs.volume.records import (
    CHUNK_TYPE,
    CHUNKMAP_TYPE,
    MANIFEST_TYPE,
    MEDIA_TYPE_PREFIX,
    StoredChunk,
    Version,
    decode_chunkmap,
    decode_manifest,
    object_key,
)

# A manifest of a million files takes 300 MB, a chunkmap of 64 TiB 2 GB: more is no listing any more.
_RECORDS_BYTES_MAX = 1 << 30


class Contents:
    """Content-addressed objects. Digests are `b3:` and 64 hex digits. Blocking; of several threads' use.

    Reading raises NotFoundError for an object that is not there, IntegrityError for one that is not what
    its name says; both name the object, and what to do.
    """

    def __init__(self, store: Store, org: str, namespace: str) -> None:
        self.store, self.org, self.namespace = store, org, namespace

    def key(self, digest: str) -> str:
        return object_key(self.org, self.namespace, digest)

    def create(self, digest: str, data: bytes | memoryview, content_type: str) -> bool:
        """Write an object without looking for it first; False where something of its name is there."""
        return self.store.put(self.key(digest), data, content_type, "absent")

    def put(self, digest: str, data: bytes | memoryview, content_type: str) -> bool:
        """Write an object unless it is there; return whether any bytes moved. One of another length is damaged."""
        key = self.key(digest)
        size = self.store.size(key)
        if size == len(data) and (content_type == CHUNK_TYPE or self._is(key, content_type)):
            return False
        return self.store.put(key, data, content_type, "absent" if size is None else "any")

    def fill(self, digest: str, into: memoryview) -> None:
        """Fill `into` with a chunk of exactly its length, verified."""
        key = self.key(digest)
        try:
            found = self.store.fill(key, into)
        except NotFoundError:
            raise NotFoundError(self._broken(key, "is not there")) from None
        self._check(key, digest, into, found, CHUNK_TYPE)

    def chunkmap(self, digest: str, size: int) -> list[StoredChunk]:
        """Return the chunks of a file of size bytes by its chunkmap."""
        data, where = self._records(digest, CHUNKMAP_TYPE)
        return decode_chunkmap(data, size, where)

    def manifest(self, digest: str) -> Version:
        data, where = self._records(digest, MANIFEST_TYPE)
        return decode_manifest(data, where)

    def _is(self, key: str, content_type: str) -> bool:
        try:
            return self.store.get(key, _RECORDS_BYTES_MAX).content_type == content_type
        except NotFoundError:
            return False

    def _records(self, digest: str, media_type: str) -> tuple[bytes, str]:
        key = self.key(digest)
        try:
            held = self.store.get(key, _RECORDS_BYTES_MAX)
        except NotFoundError:
            raise NotFoundError(self._broken(key, "is not there")) from None
        self._check(key, digest, held.data, held.content_type, media_type)
        return held.data, f"{self.store.name}: {key}"

    def _check(self, key: str, digest: str, data: bytes | memoryview, found: str, wanted: str) -> None:
        if found.startswith(MEDIA_TYPE_PREFIX) and found.endswith("+zstd"):
            raise UpstreamError(
                f"{self.store.name}: {key} is compressed, which this bdnfs doesn't read; mirror the source again"
            )
        # A file may hold the very bytes of a chunkmap: that is one object, and a chunkmap for other readers.
        if found not in (CHUNK_TYPE, CHUNKMAP_TYPE, MANIFEST_TYPE):
            raise IntegrityError(self._broken(key, f"has the content type {found[:80]!r}, not {wanted!r}"))
        if f"b3:{blake3(data).hexdigest()}" != digest:
            raise IntegrityError(self._broken(key, "does not hold the bytes that its name says"))

    def _broken(self, key: str, what: str) -> str:
        return (
            f"{self.store.name}: {key} {what}; `bdnfs mirror verify --repair` fetches it again from upstream"
        )
