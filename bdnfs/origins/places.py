"""Where redirects led: asked once per file, asked again when a signed URL has expired."""

import threading
from collections.abc import Mapping

from bdnfs.core.errors import UnavailableError
from bdnfs.origins.credentials import Credential
from bdnfs.origins.http import HttpClient
from bdnfs.origins.reply import Reply

# A remembered place that answers so has expired or is gone; 412 and 416 are about the file itself.
_STALE = frozenset((400, 401, 403, 404, 410))
# A signed URL is up to 2 KB; a dataset may have millions of files, each read only for a moment.
PLACES_MAX = 4096


class Places:
    """Opens URLs and remembers where each one's redirects led; safe from several threads.

    authorization: as HttpClient.open takes it
    wait_s:        how long one thread waits for another that asks for the same file, in seconds
    """

    def __init__(
        self, client: HttpClient, authorization: tuple[str, Credential[str]] | None, wait_s: float
    ) -> None:
        self._client = client
        self._authorization = authorization
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        self._asking: dict[str, threading.Lock] = {}

    def open(self, url: str, doing: str, headers: Mapping[str, str]) -> Reply:
        """Return the answer to a GET of url, from where its redirects last led if that still answers."""
        place = self._known.get(url)
        if place is None:
            with self._lock:
                asking = self._asking.setdefault(url, threading.Lock())
            # Past the deadline everyone asks for themselves: a dead server must not be waited for in turns.
            mine = asking.acquire(timeout=self._wait_s)
            try:
                place = self._known.get(url)
                if place is None:
                    return self._ask(url, doing, headers)
            finally:
                with self._lock:
                    self._asking.pop(url, None)
                if mine:
                    asking.release()
        try:
            reply = self._client.open("GET", place, doing, headers, self._authorization)
        except UnavailableError:
            self._forget(url, place)
            raise
        if reply.status >= 500 or reply.status in _STALE:
            self._forget(url, place)
        if reply.status not in _STALE:
            return reply
        reply.close()
        return self._ask(url, doing, headers)

    def _forget(self, url: str, place: str) -> None:
        with self._lock:
            if self._known.get(url) == place:
                del self._known[url]

    def _ask(self, url: str, doing: str, headers: Mapping[str, str]) -> Reply:
        reply = self._client.open("GET", url, doing, headers, self._authorization)
        if reply.status < 400:
            with self._lock:
                self._known[url] = reply.url
                if len(self._known) > PLACES_MAX:
                    del self._known[next(iter(self._known))]
        return reply
