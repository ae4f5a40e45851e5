"""A mirror in a bucket that obstore reaches: S3 and what speaks its API, or Azure."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import obstore
from obstore import exceptions as foreign

from bdnfs.core.errors import (
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from bdnfs.mirror.keys import check_key, check_prefix, is_key
from bdnfs.mirror.store import Expected, Held, Listed
from bdnfs.origins.credentials import Credential
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.object_client import CONTENT_TIMEOUT, FOREIGN, drain, metadata_timeout
from bdnfs.origins.object_errors import object_error
from bdnfs.origins.object_pages import objects_below
from bdnfs.origins.objects import ObjectPlace
from bdnfs.volume.records import CHUNK_TYPE

if TYPE_CHECKING:
    from obstore import GetResult, PutMode

    from bdnfs.origins.object_client import ObjectStore

T = TypeVar("T")
# While it sends, obstore waits for the answer: 8 MiB on a line that sixteen share take longer than a stall.
_UPLOAD_STALLS = 10
# Of Azure's bulk requests; S3's hold 1000.
_DELETES_MAX = 256
_UNTYPED = "application/octet-stream"
# What a server says that knows no conditional puts; other codes with status 400 are passing or ours to mend.
_UNCONDITIONAL = re.compile(
    r"status code: 501|<Code>(?:NotImplemented|InvalidArgument|InvalidRequest)</Code>"
)
# S3: another request for this key was under way; nothing is said about what is there now.
_CONFLICT = re.compile(r"<Code>(?:ConditionalRequestConflict|OperationAborted)</Code>")
# Of one object among many; a whole request that is refused has a status.
_REFUSED = re.compile(r"request failed for key .*\(code: (?:403|AccessDenied)\)", re.DOTALL)
# S3's way to say that an upload stalled, with status 400.
_STALLED = "<Code>RequestTimeout</Code>"
# Makes a bucket, reached with these timeouts.
Place = Callable[[HttpConfig], ObjectPlace]


class ObjectsStore:
    """The objects of a bucket or container below prefix (empty: all of it).

    credential: what requests are signed with, asked for another one where it is refused
    """

    def __init__(
        self, place: Place, prefix: str, http: HttpConfig, credential: Credential[Any] | None = None
    ) -> None:
        self._http = http
        self._credential = credential
        self._above = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._lock = threading.Lock()
        self._conditional = True
        self._stores = _opened(place(http), place(_patient(http)), http)
        self._shown = f"{self._stores.place.shown}/{self._above}".rstrip("/")
        self.name = f"{self._shown} at {self._stores.place.at}"

    def get(self, key: str, bytes_max: int) -> Held:
        """Return a small object."""
        doing, path = self._doing("reading", key)

        def get(stores: _Stores) -> Held:
            result = obstore.get(stores.content, path)
            size = result.meta["size"]
            if size > bytes_max:
                raise _longer(doing, size, f"at most {bytes_max}")
            data = bytearray(size)
            drain(result, memoryview(data), doing, self._http.stall_s)
            return Held(bytes(data), _type(result), _version(result))

        return self._call(doing, get)

    def fill(self, key: str, into: memoryview) -> str:
        """Fill `into` with all of an object."""
        doing, path = self._doing("reading", key)

        def fill(stores: _Stores) -> str:
            result = obstore.get(stores.content, path)
            size = result.meta["size"]
            if size != len(into):
                raise _longer(doing, size, str(len(into)))
            drain(result, into, doing, self._http.stall_s)
            return _type(result)

        return self._call(doing, fill)

    def size(self, key: str) -> int | None:
        """Return an object's size."""
        doing, path = self._doing("looking for", key)
        try:
            return self._call(doing, lambda stores: obstore.head(stores.metadata, path)["size"])
        except NotFoundError:
            return None

    def put(self, key: str, data: bytes | memoryview, content_type: str, expected: Expected) -> bool:
        """Write an object; where the server knows no conditional puts: look, then write."""
        doing, path = self._doing("writing", key)

        def put(mode: "PutMode") -> bool:
            return self._call(
                doing, lambda stores: _put(stores.upload(content_type), path, data, content_type, mode, doing)
            )

        known = expected == "absent" or expected.startswith('"')  # else the server gives no ETags
        if expected != "any" and self._conditional and known:
            try:
                return put("create" if expected == "absent" else {"e_tag": expected})
            except _UnconditionalError:
                pass
        if expected != "any" and self._found(doing, path) != expected:
            return False
        put("overwrite")
        if expected != "any":
            self._conditional = False
        return True

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield what lies below prefix; what has no key of ours is left out."""
        doing = f"listing {self._shown}"
        found = objects_below(
            (self._above + check_prefix(prefix)).removesuffix("/") or None,
            lambda act, *, again: self._call(doing, lambda stores: act(stores.metadata), again=again),
            doing,
            self._stores.place.server.setting,
            self._http.stall_s,
        )
        for meta in found:
            key = meta["path"].removeprefix(self._above)
            if is_key(key):
                yield Listed(key, meta["size"], meta["last_modified"].timestamp())

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, some hundreds with each request."""
        paths = [self._above + check_key(key) for key in keys]
        doing = f"deleting from {self._shown}"
        for start in range(0, len(paths), _DELETES_MAX):
            some = paths[start : start + _DELETES_MAX]
            # Azure tells the first that was not there, and hides what became of the others.
            if not self._delete(doing, some):
                for path in some:
                    self._delete(doing, [path])

    def flush(self) -> None:
        """What a bucket has taken it keeps."""

    def close(self) -> None:
        """obstore closes idle connections by itself."""

    def _doing(self, verb: str, key: str) -> tuple[str, str]:
        return f"{verb} {check_key(key)} of {self._shown}", self._above + key

    def _delete(self, doing: str, paths: Sequence[str]) -> bool:
        try:
            self._call(doing, lambda stores: obstore.delete(stores.metadata, paths))
        except NotFoundError:
            return False
        return True

    def _found(self, doing: str, path: str) -> str:
        """Return the version that is there, or "absent"."""
        try:
            meta = self._call(doing, lambda stores: obstore.head(stores.metadata, path))
        except NotFoundError:
            return "absent"
        return meta["e_tag"] or meta["last_modified"].isoformat()

    def _call(self, doing: str, act: "Callable[[_Stores], T]", *, again: bool = True) -> T:
        """Do act, once more on other terms where the first ones were refused; map what obstore raises."""
        used = self._stores
        shown = self._credential.current() if self._credential else None
        try:
            return act(used)
        except FOREIGN as error:
            found = _meaning(doing, used.place, error)
        if not (again and isinstance(found, CredentialsError) and self._on_other_terms(used, shown)):
            raise found
        stores = self._stores
        try:
            return act(stores)
        except FOREIGN as error:
            raise _meaning(doing, stores.place, error) from None

    def _on_other_terms(self, used: "_Stores", shown: object) -> bool:
        """Say whether there are other credentials by now, or become the machine's own role."""
        if self._credential is not None:
            return self._credential.refused(shown)
        with self._lock:
            if self._stores is used:
                place, patient = used.place.when_refused(), used.patient.when_refused()
                if place is not None and patient is not None:
                    self._stores = _opened(place, patient, self._http)
            return self._stores is not used


class _Stores(NamedTuple):
    """One place opened for each kind of request: what is small comes soon, content may come and go slowly.

    chunks: for what its own name verifies, BLAKE3, whenever it is read: over TLS a signature of it by SHA-256 would
    only cost, and most of what a put takes on a CPU without instructions for it
    """

    place: ObjectPlace
    patient: ObjectPlace
    metadata: "ObjectStore"
    content: "ObjectStore"
    records: "ObjectStore"
    chunks: "ObjectStore"

    def upload(self, content_type: str) -> "ObjectStore":
        """Return the store for what is put."""
        return self.chunks if content_type == CHUNK_TYPE else self.records


class _UnconditionalError(Exception):
    """The server knows no conditional puts."""


def _opened(place: ObjectPlace, patient: ObjectPlace, http: HttpConfig) -> _Stores:
    timeout = timedelta(seconds=_UPLOAD_STALLS * http.stall_s)
    return _Stores(
        place,
        patient,
        metadata=place.open(metadata_timeout(http)),
        content=place.open(CONTENT_TIMEOUT),
        records=patient.open(timeout),
        chunks=patient.open(timeout, signs_content=False),
    )


def _patient(http: HttpConfig) -> HttpConfig:
    return replace(http, stall_s=_UPLOAD_STALLS * http.stall_s)


def _put(
    store: "ObjectStore", path: str, data: bytes | memoryview, content_type: str, mode: "PutMode", doing: str
) -> bool:
    try:
        obstore.put(
            store, path, data, attributes={"Content-Type": content_type}, mode=mode, use_multipart=False
        )
    except (foreign.AlreadyExistsError, FileExistsError, foreign.PreconditionError) as error:
        if _CONFLICT.search(str(error)):
            raise UnavailableError(f"{doing}: another request was changing it; try again") from None
        return False
    except FOREIGN as error:
        if mode != "overwrite" and _UNCONDITIONAL.search(str(error)):
            raise _UnconditionalError from None
        raise
    return True


def _meaning(doing: str, place: ObjectPlace, error: Exception) -> Exception:
    if _REFUSED.search(str(error)):
        credentials = place.server.credentials
        return CredentialsError(
            f"{doing}: it was refused; check that {credentials} may delete, or auth_secret_name"
        )
    if _STALLED in str(error):
        return UnavailableError(f"{doing}: {place.server.place} waited too long for bytes of ours; try again")
    return object_error(doing, place.server, error)


def _type(result: "GetResult") -> str:
    return result.attributes.get("Content-Type") or _UNTYPED


def _version(result: "GetResult") -> str:
    return result.meta["e_tag"] or result.meta["last_modified"].isoformat()


def _longer(doing: str, size: int, expected: str) -> IntegrityError:
    return IntegrityError(
        f"{doing}: it is {size} bytes long instead of {expected}; run: bdnfs mirror verify --repair"
    )
