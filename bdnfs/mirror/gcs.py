"""A mirror in Google Cloud Storage, by gcsfs: a version is an object's generation."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from bdnfs.core.errors import (
    ChangedError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
    UpstreamError,
)
from bdnfs.mirror.keys import check_key, check_prefix, is_key
from bdnfs.mirror.store import Expected, Held, Listed
from bdnfs.origins.credentials import AccessToken, Credential
from bdnfs.origins.gcs_access import Showing
from bdnfs.origins.gcs_client import GOOGLE, GcsClient

T = TypeVar("T")
_PAGE_KEYS = 1000
# Many pages may be empty (deleted keys) before one is not.
_PAGE_STALLS = 40
_DELETES_MAX = 16
_UNTYPED = "application/octet-stream"


class _Object(NamedTuple):
    size: int
    content_type: str
    generation: str
    modified_s: float


class GcsStore:
    """The objects of a bucket below prefix (empty: all of it).

    token:   what requests show, asked for another one where it is refused; None for none
    machine: what they show from then on where none is refused
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        token: Credential[AccessToken] | None,
        client: GcsClient,
        stall_s: float,
        machine: Credential[AccessToken] | None = None,
    ) -> None:
        self._bucket = bucket
        self._above = f"{prefix}/" if prefix else ""
        self._showing = Showing(token, machine)
        self._client = client
        self._stall_s = stall_s
        self._shown = f"gs://{bucket}/{self._above}".rstrip("/")
        self.name = f"{self._shown} at {'Google' if client.endpoint == GOOGLE else client.endpoint}"

    def get(self, key: str, bytes_max: int) -> Held:
        """Return a small object."""
        doing, path = self._doing("reading", key)
        found = self._look(doing, path)
        if found.size > bytes_max:
            raise _longer(doing, found.size, f"at most {bytes_max}")
        data = bytearray(found.size)
        self._receive(doing, path, found, memoryview(data))
        return Held(bytes(data), found.content_type, found.generation)

    def fill(self, key: str, into: memoryview) -> str:
        """Fill `into` with all of an object."""
        doing, path = self._doing("reading", key)
        found = self._look(doing, path)
        if found.size != len(into):
            raise _longer(doing, found.size, str(len(into)))
        self._receive(doing, path, found, into)
        return found.content_type

    def size(self, key: str) -> int | None:
        """Return an object's size."""
        doing, path = self._doing("looking for", key)
        found = self._found(doing, path)
        return found.size if found else None

    def put(self, key: str, data: bytes | memoryview, content_type: str, expected: Expected) -> bool:
        """Look, then write on the condition that this is still there."""
        doing, path = self._doing("writing", key)
        params = {"name": path, "fields": "generation"}
        if expected != "any":
            # Not only the condition: what is there needn't be sent.
            found = self._found(doing, path)
            if (found.generation if found else "absent") != expected:
                return False
            params["ifGenerationMatch"] = found.generation if found else "0"
        # A copy: what is given up may still be on its way for a moment.
        body = bytes(data)
        # The emulator takes neither an empty body for an object nor one of JSON.
        if body and not content_type.startswith("application/json"):
            params["uploadType"], sent_type = "media", content_type
        else:
            params["uploadType"] = "multipart"
            body, sent_type = _multipart(path, body, content_type)
        upload = f"{self._client.endpoint}/upload/storage/v1/b/{{}}/o"
        try:
            self._ask(
                "POST", upload, self._bucket, doing=doing, params=params, body=body, content_type=sent_type
            )
        except ChangedError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield what lies below prefix; what has no key of ours is left out."""
        doing = f"listing {self._shown}"
        for item in self._below(doing, self._above + check_prefix(prefix)):
            key = str(item.get("name", "")).removeprefix(self._above)
            if is_key(key):
                found = self._object(doing, item)
                yield Listed(key, found.size, found.modified_s)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, several at a time: the API has no request for many."""
        paths = [self._above + check_key(key) for key in keys]
        if not paths:
            return
        with ThreadPoolExecutor(min(len(paths), _DELETES_MAX), "gs delete") as threads:
            for _ in threads.map(self._delete, paths):
                pass

    def flush(self) -> None:
        """What a bucket has taken it keeps."""

    def close(self) -> None:
        """Close the connections; those in use break off."""
        self._client.close()

    def _doing(self, verb: str, key: str) -> tuple[str, str]:
        return f"{verb} {check_key(key)} of {self._shown}", self._above + key

    def _delete(self, path: str) -> None:
        try:
            self._ask("DELETE", "b/{}/o/{}", self._bucket, path, doing=f"deleting from {self._shown}")
        except NotFoundError:
            return

    def _found(self, doing: str, path: str) -> _Object | None:
        try:
            return self._look(doing, path)
        except NotFoundError:
            return None

    def _look(self, doing: str, path: str) -> _Object:
        params = {"fields": "size,contentType,generation,updated"}
        found = self._ask("GET", "b/{}/o/{}", self._bucket, path, doing=doing, params=params)
        return self._object(doing, found)

    def _object(self, doing: str, found: Mapping[str, Any]) -> _Object:
        try:
            modified_s = datetime.fromisoformat(found["updated"]).timestamp()
            size, generation = int(found["size"]), str(found["generation"])
        except (KeyError, TypeError, ValueError):
            raise self._strange(doing) from None
        return _Object(size, str(found.get("contentType") or _UNTYPED), generation, modified_s)

    def _receive(self, doing: str, path: str, found: _Object, into: memoryview) -> None:
        if not into:
            return

        def fill(token: str | None) -> str | None:
            return self._client.fill(
                self._bucket, path, found.generation, found.size, 0, into, doing=doing, token=token
            )

        try:
            sent = self._showing.do(fill, again=True) or found.generation
        except (NotFoundError, ChangedError):
            sent = None
        if sent != found.generation:
            raise UnavailableError(f"{doing}: it was written anew in the meantime; try again")

    def _below(self, doing: str, prefix: str) -> Iterator[Mapping[str, Any]]:
        params = {"prefix": prefix, "maxResults": str(_PAGE_KEYS)}
        params["fields"] = "nextPageToken,items(name,size,generation,updated)"
        seen: set[str] = set()
        deadline_s = time.monotonic() + _PAGE_STALLS * self._stall_s
        while True:
            page = self._ask("GET", "b/{}/o", self._bucket, doing=doing, params=params)
            items, token = page.get("items", []), page.get("nextPageToken")
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise self._strange(doing)
            yield from items
            if not token:
                return
            if token in seen or not isinstance(token, str):
                raise UpstreamError(
                    f"{doing}: the listing goes round in a circle; check STORAGE_EMULATOR_HOST"
                )
            seen.add(token)
            params["pageToken"] = token
            if items:
                deadline_s = time.monotonic() + _PAGE_STALLS * self._stall_s
            elif time.monotonic() > deadline_s:
                raise UnavailableError(f"{doing}: the listing does not get on; try again later")

    def _ask(self, method: str, path: str, *names: str, **fields: Any) -> dict[str, Any]:
        return self._showing.do(
            lambda token: self._client.ask(method, path, *names, token=token, **fields), again=True
        )

    def _strange(self, doing: str) -> UpstreamError:
        return UpstreamError(
            f"{doing}: {self._client.endpoint} answered something that is not of GCS's API; "
            "check STORAGE_EMULATOR_HOST"
        )


def _multipart(path: str, data: bytes, content_type: str) -> tuple[bytes, str]:
    """Return the body of an upload that has the object's type in a part of its own, and the body's type."""
    boundary = secrets.token_hex(16)
    head = json.dumps({"name": path, "contentType": content_type})
    parts = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{head}\r\n--{boundary}\r\n"
    body = f"{parts}Content-Type: {content_type}\r\n\r\n".encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/related; boundary={boundary}"


def _longer(doing: str, size: int, expected: str) -> IntegrityError:
    return IntegrityError(
        f"{doing}: it is {size} bytes long instead of {expected}; run: bdnfs mirror verify --repair"
    )
