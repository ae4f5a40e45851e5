"""A node's HTTP, version 1: chunks for its cluster, what it knows of itself, metrics (docs/cluster.md)."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from bdnfs.core.errors import (
    UNREADABLE,
    BdnfsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from bdnfs.core.units import MIB
from bdnfs.serve.node.asked import PREFIX, Asked, Wrong, asked_of
from bdnfs.serve.node.gate import Gate
from bdnfs.serve.node.holdings import Accel, Holdings, Inline
from bdnfs.serve.node.http import Answer, Headers, Request
from bdnfs.serve.node.metrics import TEXT_TYPE, Served
from bdnfs.serve.node.owning import Owning
from bdnfs.serve.node.telling import Telling
from bdnfs.serve.node.yielding import Yielding
from bdnfs.serve.tenants import host_of, is_loopback

_RETRY_AFTER_S = 5
_ASKED_MAX = 1024
_MEMORY_BYTES_MAX = 512 * MIB
_JSON, _BYTES = b"application/json", b"application/octet-stream"
_CHUNKS = PREFIX.encode()
_TIERS_MAX, _TIER_CHARS_MAX = 16, 32


class Self(NamedTuple):
    """Who this node is. org: its tenant's part of keys; only_local: no token, no TLS: the listener is loopback's."""

    name: str
    org: str
    only_local: bool


class NodeApp:
    """Answers requests, and never raises.

    behind_nginx: requests come through our own nginx, which sends files in our place
    """

    def __init__(
        self,
        me: Self,
        gate: Gate,
        holdings: Holdings,
        owning: Owning,
        yielding: Yielding,
        served: Served,
        telling: Telling,
        *,
        behind_nginx: bool,
        bug: Callable[[BaseException], str],
        warn: Callable[[str], None],
    ) -> None:
        self._me, self._gate = me, gate
        self._holdings, self._owning, self._yielding, self._served = holdings, owning, yielding, served
        self._behind_nginx = behind_nginx
        self._telling, self._bug, self._warn = telling, bug, warn
        self._under_way = 0
        self._in_memory = Memory(_MEMORY_BYTES_MAX)
        self._calls: dict[bytes, tuple[bytes, Callable[[Request], Answer]]] = {
            b"/v1/node": (b"GET", self._node),
            b"/v1/report": (b"POST", self._report),
            b"/metrics": (b"GET", self._page),
        }

    async def __call__(self, request: Request) -> Answer:
        try:
            return await self._answer(request)
        except Exception as error:
            self._warn(self._bug(error))
            return _said(500, "a bug in bdnfs")

    async def _answer(self, request: Request) -> Answer:
        if request.path == b"/healthz":
            return _with(200, b'{"status":"ok"}', _JSON)
        refused = self._refuses(request)
        if refused is not None:
            self._served.refused["unknown"] += 1
            return _said(*refused)
        if request.path.startswith(_CHUNKS):
            if request.method != b"GET":
                return _said(405, "a chunk can be read, by GET, and nothing else")
            return await self._chunk(request)
        if request.path not in self._calls:
            return _said(404, "there is no such call")
        method, call = self._calls[request.path]
        return (
            call(request)
            if request.method == method
            else _said(405, f"this is asked for by {method.decode()}")
        )

    def _refuses(self, request: Request) -> Wrong | None:
        """Return why whoever asks gets nothing at all."""
        authorization, host = b"", b""
        for name, value in request.headers:
            if name == b"authorization":
                authorization = value
            elif name == b"host":
                host = value
        if not self._gate.lets_in(authorization):
            return Wrong(401, "this node asks for its cluster's token")
        # A page in a browser here can make a name of its own mean 127.0.0.1.
        if self._me.only_local and not is_loopback(host_of(host.decode("latin-1"))):
            return Wrong(403, "this node asks for no token, so it answers to localhost alone")
        return None

    # -- chunks -----------------------------------------------------------------------------------

    async def _chunk(self, request: Request) -> Answer:
        asked = asked_of(request.path, request.query, request.headers, self._me.org)
        if isinstance(asked, Wrong):
            self._served.refused["foreign" if asked.status == 403 else "wrong"] += 1
            return _said(*asked)
        if self._under_way >= _ASKED_MAX:
            return self._later("overloaded", 1)
        self._under_way += 1
        try:
            return await self._give(asked, own=asked.node == self._me.name and self._is_own(request))
        finally:
            self._under_way -= 1

    async def _give(self, asked: Asked, *, own: bool) -> Answer:
        rate = self._yielding.rate
        if not own and self._yielding.paused:
            return self._later("paused", _RETRY_AFTER_S)
        if not own and rate.wait_s() is None:
            return self._later("rate", rate.retry_after_s())
        try:
            found = await self._holdings.find(asked)
            if found is None and self._holdings.has_come(asked):
                found = await self._holdings.find(asked)
            # Nothing is awaited in between: whoever comes while it is on its way joins its flight.
            if found is None and not asked.held:
                found = self._holdings.fetched(asked, await self._owning.fetch(asked))
        except NotFoundError:
            found = None
        except IntegrityError as error:
            self._warn(str(error))
            found = None
        except UnavailableError as error:
            return self._later("mirror", max(1, round(error.retry_after_s or _RETRY_AFTER_S)))
        except BdnfsError as error:
            self._warn(str(error))
            return self._later("mirror", _RETRY_AFTER_S)
        if found is None:
            self._served.refused["missing"] += 1
            return _said(404, "neither this node nor its mirror has this chunk")
        if isinstance(found, Inline) and not self._in_memory.fits(found.data):
            return self._later("overloaded", 1)
        if not own and not await rate.take(asked.size):
            return self._later("rate", rate.retry_after_s())
        self._served.sent(found.tier, asked.size)
        if isinstance(found, Accel):
            return _redirect(found, None if own else rate.bytes_s)
        return _inline(asked, found)._replace(sent=self._in_memory.take(found.data))

    def _later(self, why: str, retry_after_s: int) -> Answer:
        self._served.refused[why] += 1
        return _said(503, f"not now: {why}", [(b"retry-after", b"%d" % retry_after_s)])

    def _is_own(self, request: Request) -> bool:
        """Say whether a request comes from this very machine."""
        client, server = request.client, request.server
        if self._behind_nginx:
            for name, value in request.headers:
                if name == b"bdnfs-client":
                    client = value.decode("latin-1")
                elif name == b"bdnfs-server":
                    server = value.decode("latin-1")
        return bool(client) and (client == server or is_loopback(client))

    # -- the node itself --------------------------------------------------------------------------

    def _node(self, request: Request) -> Answer:
        return _with(200, msgspec.json.encode(self._telling.facts()), _JSON)

    def _page(self, request: Request) -> Answer:
        return _with(200, self._telling.page(), TEXT_TYPE.encode())

    def _report(self, request: Request) -> Answer:
        if not self._is_own(request):
            return _said(403, "only this machine's own fills report here")
        try:
            found = msgspec.json.decode(request.body, type=dict[str, int])
        except UNREADABLE:
            return _said(400, "a report is a JSON object: tier to bytes")
        filled = self._served.filled
        for tier, size_bytes in found.items():
            known = tier in filled or (len(filled) < _TIERS_MAX and len(tier) <= _TIER_CHARS_MAX)
            if known and size_bytes > 0:
                filled[tier] += size_bytes
        return _with(200, b"{}", _JSON)


class Memory:
    """Chunks that are in memory until they are sent, each once however many get it."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._users: Counter[int] = Counter()

    def fits(self, data: memoryview) -> bool:
        return id(data.obj) in self._users or self._bytes + data.nbytes <= self._most_bytes

    def take(self, data: memoryview) -> Callable[[], None]:
        """Count data until what is returned is called."""
        name, size = id(data.obj), data.nbytes
        self._bytes += size if name not in self._users else 0
        self._users[name] += 1

        def give() -> None:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
                self._bytes -= size

        return give


def _redirect(found: Accel, bytes_s: int | None) -> Answer:
    """Have nginx send a file."""
    headers = [
        (b"x-accel-redirect", found.location.encode()),
        (b"content-type", _BYTES),
        (b"bdnfs-tier", found.tier.encode()),
        (b"content-length", b"0"),
    ]
    if bytes_s is not None:
        headers.append((b"x-accel-limit-rate", b"%d" % bytes_s))
    return Answer(200, headers, b"")


def _inline(asked: Asked, found: Inline) -> Answer:
    headers: Headers = [(b"bdnfs-tier", found.tier.encode())]
    if found.file_bytes is None:
        return _with(200, found.data, _BYTES, headers)
    headers.append((b"content-range", b"bytes %d-%d/%d" % (asked.start, asked.stop - 1, found.file_bytes)))
    return _with(206, found.data, _BYTES, headers)


def _said(status: int, message: str, more: Headers | None = None) -> Answer:
    if status == 401:
        more = [(b"www-authenticate", b"Bearer"), *(more or ())]
    return _with(status, msgspec.json.encode({"error": message}), _JSON, more)


def _with(status: int, body: bytes | memoryview, kind: bytes, more: Headers | None = None) -> Answer:
    return Answer(
        status, [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *(more or ())], body
    )
