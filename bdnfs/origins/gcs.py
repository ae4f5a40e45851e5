"""Google Cloud Storage: a prefix of a bucket, or a single object, each read at its generation."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from bdnfs.core.errors import ChangedError, NotFoundError, UnavailableError, UpstreamError
from bdnfs.core.ranges import chunk_count, chunk_range
from bdnfs.manifest.model import FileEntry
from bdnfs.manifest.sizes import check_size
from bdnfs.origins.credentials import AccessToken, Credential
from bdnfs.origins.gcs_access import Showing
from bdnfs.origins.gcs_client import GOOGLE, GcsClient
from bdnfs.origins.prefix import Prefix

_PAGE_KEYS = 1000
_FIELDS = "name,size,generation"
# Many pages may be empty before one is not.
_PAGE_STALLS = 40


class GcsOrigin:
    """A bucket below prefix, or the one object that prefix names.

    token:   what requests show, None for what everybody may read
    machine: what they show from then on where everybody is refused
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
        self._bucket, self._prefix = bucket, prefix
        self._showing = Showing(token, machine)  # a refusal is the wrapper's to mend (`authorized.py`)
        self._client = client
        self._stall_s = stall_s
        self._named = Prefix(prefix, self._look, lambda item: bool(item["size"] != "0"))
        self._shown = f"gs://{bucket}/{prefix}".rstrip("/")
        self.name = f"{self._shown} at {'Google' if client.endpoint == GOOGLE else client.endpoint}"

    def resolve(self, revision: str | None) -> None:
        """There are no revisions."""

    def list(self, revision: str | None) -> Iterator[FileEntry]:
        """Yield the one object, or every object below the prefix, which ends at a `/`."""
        doing = f"listing {self._shown}"
        return self._named.entries(
            doing, self._files_below(doing), partial(self._entry, doing), "check its name"
        )

    def _files_below(self, doing: str) -> Iterator[FileEntry | None]:
        below = f"{self._prefix}/" if self._prefix else ""
        for item in self._below(doing, below):
            key = item["name"]
            stands_for_directory = key.endswith("/") and item["size"] == "0"
            yield None if stands_for_directory else self._entry(doing, key.removeprefix(below), item)

    def read(self, revision: str | None, entry: FileEntry, start: int, into: memoryview) -> None:
        """Fill `into` from byte start of the object's generation."""
        if not into:
            return
        doing = f"reading {entry.path} of {self._shown}"
        key = self._named.key(doing, entry)
        try:
            sent = self._showing.do(
                lambda token: self._client.fill(
                    self._bucket, key, entry.identity, entry.size, start, into, doing=doing, token=token
                ),
                again=False,
            )
        except NotFoundError:
            # A generation that is no longer kept is not found; whether another one is there tells the two apart.
            if self._generation(doing, key) != entry.identity:
                raise self._changed(doing) from None
            raise
        # Who does not say what was sent is asked afterwards: generations never come back.
        if (sent or self._generation(doing, key)) != entry.identity:
            raise self._changed(doing)

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        """Yield the whole object, chunk by chunk."""
        for index in range(chunk_count(entry.size)):
            start, stop = chunk_range(entry.size, index)
            piece = memoryview(bytearray(stop - start))
            self.read(revision, entry, start, piece)
            yield piece

    def close(self) -> None:
        self._client.close()

    def _ask(self, doing: str, path: str, *names: str, params: Mapping[str, str]) -> dict[str, Any]:
        return self._showing.do(
            lambda token: self._client.ask("GET", path, *names, doing=doing, token=token, params=params),
            again=False,
        )

    def _generation(self, doing: str, key: str) -> str:
        """Return the generation of the object that is there now; NotFoundError if none is."""
        return str(
            self._ask(doing, "b/{}/o/{}", self._bucket, key, params={"fields": _FIELDS}).get("generation")
        )

    def _look(self, doing: str, key: str) -> dict[str, Any] | None:
        try:
            found = self._ask(doing, "b/{}/o/{}", self._bucket, key, params={"fields": _FIELDS})
        except NotFoundError:
            return None
        return self._item(doing, found)

    def _below(self, doing: str, prefix: str) -> Iterator[dict[str, Any]]:
        """Yield what the API says of every key that begins with prefix, page by page."""
        params = {
            "maxResults": str(_PAGE_KEYS),
            "fields": f"nextPageToken,items({_FIELDS})",
            "prefix": prefix,
        }
        tokens: set[object] = set()
        deadline_s = time.monotonic() + _PAGE_STALLS * self._stall_s
        while True:
            page = self._ask(doing, "b/{}/o", self._bucket, params=params)
            items = page.get("items", [])
            if not isinstance(items, list):
                raise self._strange(doing)
            for item in items:
                yield self._item(doing, item)
            token = page.get("nextPageToken")
            if not token:
                return
            if token in tokens or not isinstance(token, str):
                raise UpstreamError(
                    f"{doing}: the listing goes round in a circle; check STORAGE_EMULATOR_HOST"
                )
            tokens.add(token)
            if items:
                deadline_s = time.monotonic() + _PAGE_STALLS * self._stall_s
            elif time.monotonic() > deadline_s:
                raise UnavailableError(f"{doing}: the listing does not get on; try again later")
            params["pageToken"] = token

    def _changed(self, doing: str) -> ChangedError:
        return ChangedError(
            f"{doing}: the object is another one now (its generation differs from the snapshot's); "
            "it changed upstream. Mount it again for the new version"
        )

    def _item(self, doing: str, found: object) -> dict[str, Any]:
        """Return what the API says of an object, with a size and a generation as it writes them: in texts."""
        if (
            not isinstance(found, dict)
            or not isinstance(found.get("name"), str)
            or not found.get("generation")
        ):
            raise self._strange(doing)
        size = str(found.get("size", "0"))
        if not (size.isascii() and size.isdecimal()):
            raise self._strange(doing)
        return {"name": found["name"], "size": size, "generation": str(found["generation"])}

    def _strange(self, doing: str) -> UpstreamError:
        return UpstreamError(
            f"{doing}: {self._client.endpoint} answered something that is not of GCS's API; "
            "check STORAGE_EMULATOR_HOST"
        )

    def _entry(self, doing: str, path: str, item: Mapping[str, Any]) -> FileEntry:
        if not path:
            raise UpstreamError(
                f"{doing}: the key {item['name'][:200]!r} ends in '/' and has content, and can't be a file here; "
                "rename it, or mount a narrower prefix"
            )
        return FileEntry(
            path=path, size=check_size(int(item["size"]), path, doing), identity=item["generation"]
        )
