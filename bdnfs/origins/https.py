"""A single file at an https or http URL, with or without ranges."""

import hashlib
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from bdnfs.core.errors import ChangedError, SpecError, UpstreamError
from bdnfs.manifest.model import FileEntry
from bdnfs.manifest.sizes import check_size
from bdnfs.origins.answers import content_length, content_range, shown
from bdnfs.origins.credentials import Credential
from bdnfs.origins.http import HttpClient, HttpConfig, origin_of
from bdnfs.origins.places import Places
from bdnfs.origins.reply import Reply

# Everything that may stand in a URL as it is; blanks and letters outside ASCII are quoted.
_SAFE = "/:?#[]@!$&'()*+,;=%-._~"


class HttpsOrigin:
    """The file at url. credential: the Authorization header's value, sent to the URL's own host only."""

    def __init__(self, url: str, credential: Credential[str] | None, http: HttpConfig) -> None:
        parts = urlsplit(url)
        self._path = unquote(parts.path.rpartition("/")[2])
        if not self._path:
            raise SpecError(f"source {shown(url)} names no file; write https://host/path/file")
        host = parts.netloc.rpartition("@")[2]
        self._url = quote(urlunsplit((parts.scheme, host, parts.path, parts.query, "")), safe=_SAFE)
        self._client = HttpClient(http)
        authorization = (origin_of(self._url), credential) if credential else None
        self._places = Places(self._client, authorization, http.stall_s)
        # The query may choose the file, or hold what must not be written down.
        query = f"?{hashlib.sha256(parts.query.encode()).hexdigest()[:16]}" if parts.query else ""
        self.name = shown(self._url) + query

    def resolve(self, revision: str | None) -> None:
        """There are no revisions."""

    def list(self, revision: str | None) -> Iterator[FileEntry]:
        """Yield the one file; UpstreamError where the server doesn't say how long it is."""
        doing = f"looking up {shown(self._url)}"
        with self._places.open(self._url, doing, {"Range": "bytes=0-0"}) as reply:
            start, stop, total = content_range(reply.headers)
            if reply.status == 206 and (start, stop) == (0, 1) and total:
                yield self._entry(reply, total, ranged=True)
                return
            if reply.status == 416 and total == 0:
                yield self._entry(reply, 0, ranged=True)
                return
            if reply.status == 200 and (size := content_length(reply.headers)) is not None:
                yield self._entry(reply, size, ranged=False)
                return
            if reply.status not in (200, 206, 416):
                raise reply.error
        with self._places.open(self._url, doing, {}) as reply:
            if reply.status != 200:
                raise reply.error
            size = content_length(reply.headers)
            if size is None:
                raise UpstreamError(
                    f"{doing}: the server does not say how long the file is (no Content-Length), "
                    "so that it can't "
                    "be checked or cached; serve it as a plain file"
                )
            yield self._entry(reply, size, ranged=False)

    def read(self, revision: str | None, entry: FileEntry, start: int, into: memoryview) -> None:
        """Fill `into` from byte start of the file."""
        if not into:
            return
        stop = start + len(into)
        with self._open(entry, {"Range": f"bytes={start}-{stop - 1}"}) as reply:
            reply.expect_range(start, stop, entry.size)
            reply.read_into(into)

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        """Yield the whole file in one request."""
        if not entry.size:
            return
        with self._open(entry, {}) as reply:
            reply.expect_whole(entry.size)
            yield from reply.pieces(entry.size)

    def close(self) -> None:
        self._client.close()

    def _open(self, entry: FileEntry, headers: dict[str, str]) -> Reply:
        # No If-Match, no If-Range: not every server honours them, so each answer is compared anyway.
        doing = f"reading {shown(self._url)}"
        reply = self._places.open(self._url, doing, headers)
        if reply.status in (200, 206, 416) and entry.identity and _identity(reply) != entry.identity:
            reply.close()
            raise ChangedError(
                f"{doing}: the file is another one now (its ETag or Last-Modified differs from the "
                "snapshot's); "
                "it changed upstream. Mount it again for the new version"
            )
        return reply

    def _entry(self, reply: Reply, size: int, *, ranged: bool) -> FileEntry:
        check_size(size, self._path, f"looking up {shown(self._url)}")
        identity = _identity(reply)
        # Without a validator only one answer read in one go is sure to be one version.
        return FileEntry(path=self._path, size=size, identity=identity, ranged=ranged and bool(identity))


def _identity(reply: Reply) -> str:
    """Return the strong ETag, else Last-Modified, else nothing."""
    etag = (reply.headers.get("ETag") or "").strip()
    if etag and not etag.startswith("W/"):
        return etag
    return (reply.headers.get("Last-Modified") or "").strip()
