"""Google Cloud Storage's JSON API, by gcsfs: with deadlines, without its retries and without its credentials.

gcsfs runs on fsspec's event loop, which a thread of its own turns; what is called here are other threads.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import aiohttp

from bdnfs.core.errors import BdnfsError, ChangedError, UnavailableError, UpstreamError
from bdnfs.origins.answers import content_range, network_error, status_error
from bdnfs.origins.certificates import ssl_context
from bdnfs.origins.floor import Floor
from bdnfs.origins.gcs_session import PIECE_BYTES, GcsSession
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.proxies import proxy_for

T = TypeVar("T")

GOOGLE = "https://storage.googleapis.com"
# aiohttp says of a closed session that it is a RuntimeError.
_FOREIGN = (aiohttp.ClientError, OSError, ValueError, RuntimeError)
# All of a small answer in so many times the stall, however it trickles.
_METADATA_STALLS = 10


class GcsClient:
    """Requests to one endpoint; safe from several threads. Every call ends.

    endpoint: a URL without a slash at its end
    """

    def __init__(self, endpoint: str, http: HttpConfig) -> None:
        self.endpoint = endpoint
        self._stall_s = http.stall_s
        proxy = proxy_for(endpoint, http.proxies)
        secure = "https:" in (endpoint[:6], (proxy or "")[:6])
        self._session = GcsSession(
            endpoint=endpoint,
            proxy=proxy,
            # To read all the system's authorities takes a third of a second.
            tls=ssl_context(http.ca_bundle) if secure else True,
            stall_s=http.stall_s,
            connections_max=http.connections_max,
        )

    def ask(
        self,
        method: str,
        path: str,
        *names: str,
        doing: str,
        token: str | None,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "",
    ) -> dict[str, Any]:
        """Return the JSON that the API answers at path, in which each `{}` is one of names.

        Raises what the answer's status means, ChangedError where a condition in params is not met;
        UpstreamError for an answer that is no JSON object.
        """
        url = self._session.url(path, names)
        wait_s = _METADATA_STALLS * self._stall_s
        sent = {**_headers(token), **({"Content-Type": content_type} if content_type else {})}

        async def request() -> tuple[int, Mapping[str, str], bytes]:
            return await asyncio.wait_for(self._session.small(method, url, params, sent, body), wait_s)

        status, headers, content = self._wait(request(), doing, lambda: 0, wait_s + self._stall_s)
        if status == 412:
            raise ChangedError(f"{doing}: another version of the object is there now; try again")
        if status not in (200, 204):
            raise self._refused(doing, status, headers)
        try:
            found = json.loads(content) if content else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UpstreamError(
                f"{doing}: {self.endpoint} answered something that is not of GCS's API; check STORAGE_EMULATOR_HOST"
            )
        return found

    def fill(
        self,
        bucket: str,
        key: str,
        generation: str,
        size: int,
        start: int,
        into: memoryview,
        *,
        doing: str,
        token: str | None,
    ) -> str | None:
        """Fill `into` from byte start of an object of size bytes; return the generation that was sent, if it is said.

        Raises ChangedError where the object has another size, NotFoundError where this generation is gone.
        """
        url = self._session.url("b/{}/o/{}", (bucket, key))
        params = {"alt": "media", "generation": generation}
        # An object that is stored compressed comes as it is stored, which is what its size is about.
        headers = {
            **_headers(token),
            "Range": f"bytes={start}-{start + len(into) - 1}",
            "Accept-Encoding": "gzip",
        }
        target = _Target(into)

        async def request() -> str | None:
            async with self._session.opened("GET", url, params, headers) as reply:
                if reply.status == 416:
                    raise _changed(doing, size, None)
                if reply.status not in (200, 206):
                    raise self._refused(doing, reply.status, reply.headers)
                first, stop, total = content_range(reply.headers)
                if total is not None and total != size:
                    raise _changed(doing, size, total)
                if reply.status != 206 or (first, stop) != (start, start + len(into)):
                    raise UpstreamError(
                        f"{doing}: {self.endpoint} answered other bytes than were asked for; check the endpoint"
                    )
                await self._receive(reply, target, doing)
                return reply.headers.get("x-goog-generation")

        try:
            return self._wait(request(), doing, lambda: target.got, 4 * self._stall_s)
        finally:
            target.close()

    def close(self) -> None:
        """Close the connections; those in use break off."""
        self._session.shut()

    async def _receive(self, reply: aiohttp.ClientResponse, target: "_Target", doing: str) -> None:
        floor, began_s = Floor(self._stall_s), time.monotonic()
        while piece := await reply.content.read(PIECE_BYTES):
            floor.note(len(piece), time.monotonic() - began_s)
            if not target.write(piece):
                raise UpstreamError(
                    f"{doing}: {self.endpoint} sent more than the {target.size} bytes asked for; check the endpoint"
                )
            began_s = time.monotonic()
        if target.got < target.size:
            raise UnavailableError(
                f"{doing}: {self.endpoint} broke off after {target.got} of {target.size} bytes; try again"
            )

    def _wait(
        self, work: Coroutine[Any, Any, T], doing: str, progress: Callable[[], int], patience_s: float
    ) -> T:
        """Return what work returns; UnavailableError once it made no progress for patience_s."""
        future = asyncio.run_coroutine_threadsafe(work, self._session.loop)
        try:
            while True:
                before = progress()
                try:
                    return future.result(patience_s)
                except TimeoutError:
                    # Its own, or that of this wait.
                    if future.done() or progress() == before:
                        raise
        except BdnfsError:
            raise
        except _FOREIGN as error:
            raise network_error(doing, self.endpoint, _spoken(error)) from None
        finally:
            future.cancel()

    def _refused(self, doing: str, status: int, headers: Mapping[str, str]) -> BdnfsError:
        return status_error(doing, self.endpoint, status, headers)


class _Target:
    """The caller's bytes: written to from the loop's thread, and never after the caller has left."""

    def __init__(self, into: memoryview) -> None:
        self._into: memoryview | None = into
        self._lock = threading.Lock()
        self.size, self.got = len(into), 0

    def write(self, piece: bytes) -> bool:
        """Add piece; return whether there was room for it."""
        with self._lock:
            end = self.got + len(piece)
            if self._into is None or end > self.size:
                return False
            self._into[self.got : end] = piece
            self.got = end
            return True

    def close(self) -> None:
        with self._lock:
            self._into = None


def _headers(token: str | None) -> dict[str, str]:
    shown = {"Authorization": f"Bearer {token}"} if token else {}
    return {"User-Agent": "bdnfs", "Accept-Encoding": "identity", **shown}


def _changed(doing: str, size: int, found: int | None) -> ChangedError:
    now = "fewer" if found is None else str(found)
    return ChangedError(
        f"{doing}: the object holds {now} bytes now, not the snapshot's {size}; "
        "it changed upstream. Mount it again for the new version"
    )


def _spoken(error: Exception) -> Exception:
    """Return what says more about a failed connection than aiohttp's own error does."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return error.certificate_error
    return error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
