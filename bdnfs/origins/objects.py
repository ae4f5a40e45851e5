"""What every bucket that obstore reads has in common: a prefix of it, or a single object."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, TypeVar

import obstore

from bdnfs.core.errors import ChangedError, CredentialsError, NotFoundError, UpstreamError
from bdnfs.core.ranges import chunk_count, chunk_range
from bdnfs.manifest.model import FileEntry
from bdnfs.manifest.sizes import check_size
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.object_client import CONTENT_TIMEOUT, FOREIGN, drain, metadata_timeout
from bdnfs.origins.object_errors import Server, object_changed, object_error
from bdnfs.origins.object_pages import objects_below
from bdnfs.origins.prefix import Prefix

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

    from bdnfs.origins.object_client import ObjectStore

T = TypeVar("T")


class ObjectPlace(Protocol):
    """A bucket or container, and the terms on which it is reached.

    shown:  `scheme://bucket`, as the source says it
    at:     what tells this store from others that have a bucket of this name
    server: who answers there
    """

    @property
    def shown(self) -> str: ...

    @property
    def at(self) -> str: ...

    @property
    def server(self) -> Server: ...

    def open(self, timeout: timedelta, *, signs_content: bool = True) -> "ObjectStore":
        """Return a store whose requests end after timeout; SpecError if the settings can't be used.

        signs_content: whether signatures cover what is put also over TLS; that costs a SHA-256 of it
        """
        ...

    def when_refused(self) -> Self | None:
        """Return the place on other terms, worth one more try where these were refused; or None."""
        ...


class ObjectOrigin:
    """A place below prefix, or the one object that prefix names."""

    def __init__(self, place: ObjectPlace, prefix: str, http: HttpConfig) -> None:
        self._prefix = prefix
        self._http = http
        self._lock = threading.Lock()
        self._named = Prefix(prefix, self._look, lambda meta: meta["size"] > 0)
        self._shown = f"{place.shown}/{prefix}".rstrip("/")
        self.name = f"{self._shown} at {place.at}"
        self._stores = self._opened(place)

    def resolve(self, revision: str | None) -> None:
        """There are no revisions."""

    def list(self, revision: str | None) -> Iterator[FileEntry]:
        """Yield the one object, or every object below the prefix, which ends at a `/`."""
        doing = f"listing {self._shown}"
        setting = self._stores.place.server.setting
        return self._named.entries(
            doing,
            self._files_below(doing, setting),
            partial(self._entry, doing),
            f"check its name and {setting}",
        )

    def _files_below(self, doing: str, setting: str) -> Iterator[FileEntry | None]:
        for meta in objects_below(
            self._prefix or None,
            lambda act, *, again: self._call(doing, lambda stores: act(stores.metadata), again=again),
            doing,
            setting,
            self._http.stall_s,
        ):
            # A key that ends in `/` loses it where obstore lists it.
            is_gone = meta["size"] == 0 and self._is_gone(doing, meta["path"])
            path = meta["path"].removeprefix(self._prefix).lstrip("/")
            yield None if is_gone else self._entry(doing, path, meta)

    def read(self, revision: str | None, entry: FileEntry, start: int, into: memoryview) -> None:
        """Fill `into` from byte start of the object."""
        if not into:
            return
        doing = f"reading {entry.path} of {self._shown}"
        key = self._named.key(doing, entry)
        try:
            self._call(doing, lambda stores: self._fill(stores.content, doing, key, entry, start, into))
        except (NotFoundError, ChangedError) as error:
            # Azure's emulator says of a blob that is gone only that the condition does not hold.
            if isinstance(error, ChangedError) and not self._is_gone(doing, key):
                raise
            # obstore lists a key without a `/` at its ends, and then reads another one.
            raise NotFoundError(
                f"{doing}: there is no object {key!r} any more; it was removed since it was listed, or its key "
                "begins or ends with '/' and can't be a file here: leave it out with ignore_patterns, or rename it"
            ) from None

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        """Yield the whole object, chunk by chunk."""
        for index in range(chunk_count(entry.size)):
            start, stop = chunk_range(entry.size, index)
            piece = memoryview(bytearray(stop - start))
            self.read(revision, entry, start, piece)
            yield piece

    def close(self) -> None:
        """obstore closes idle connections by itself."""

    def _fill(
        self, store: "ObjectStore", doing: str, key: str, entry: FileEntry, start: int, into: memoryview
    ) -> None:
        stop = start + len(into)
        options: GetOptions = {"range": (start, stop)}
        if entry.identity.startswith('"'):
            options["if_match"] = entry.identity
        result = obstore.get(store, key, options=options)
        if result.meta["size"] != entry.size or _identity(result.meta) != entry.identity:
            raise object_changed(doing)
        if tuple(result.range) != (start, stop):
            raise UpstreamError(
                f"{doing}: the store answered other bytes than were asked for; check the endpoint"
            )
        drain(result, into, doing, self._http.stall_s)

    def _look(self, doing: str, key: str) -> "ObjectMeta | None":
        try:
            return self._call(doing, lambda stores: obstore.head(stores.metadata, key))
        except NotFoundError:
            return None

    def _is_gone(self, doing: str, key: str) -> bool:
        return self._look(doing, key) is None

    def _entry(self, doing: str, path: str, meta: "ObjectMeta") -> FileEntry:
        return FileEntry(path=path, size=check_size(meta["size"], path, doing), identity=_identity(meta))

    def _call(self, doing: str, act: "Callable[[_Stores], T]", *, again: bool = True) -> T:
        """Do act, if it may be done again once more on other terms where the first ones were refused."""
        used = self._stores
        try:
            return act(used)
        except FOREIGN as error:
            found = object_error(doing, used.place.server, error)
        if not (again and isinstance(found, CredentialsError) and self._on_other_terms(used)):
            raise found
        stores = self._stores
        try:
            return act(stores)
        except FOREIGN as error:
            raise object_error(doing, stores.place.server, error) from None

    def _on_other_terms(self, used: "_Stores") -> bool:
        """Reach the place on other terms; return whether that is news to who used those stores."""
        with self._lock:
            if self._stores is used:
                place = used.place.when_refused()
                if place is not None:
                    self._stores = self._opened(place)
            return self._stores is not used

    def _opened(self, place: ObjectPlace) -> "_Stores":
        return _Stores(place, place.open(CONTENT_TIMEOUT), place.open(metadata_timeout(self._http)))


class _Stores(NamedTuple):
    """One place opened twice: a request for content may take its time, one for metadata may not."""

    place: ObjectPlace
    content: "ObjectStore"
    metadata: "ObjectStore"


def _identity(meta: "ObjectMeta") -> str:
    tag = meta["e_tag"]
    if not tag:
        return meta["last_modified"].isoformat()
    # Azure puts it into quotes everywhere but in a listing.
    return tag if tag.startswith(('"', "W/")) else f'"{tag}"'
