"""A node's HTTP, version 1: chunks for its cluster, what it knows of itself, metrics (docs/cluster.md).

One ASGI application, written against ASGI itself: what a chunk costs here is what the node's job loses.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
import trio
from starlette.types import Message, Receive, Scope, Send

from bdnfs.core.errors import (
    UNREADABLE,
    BdnfsError,
    DeadlineError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from bdnfs.serve.node.asked import PREFIX, Asked, Wrong, asked_of
from bdnfs.serve.node.gate import Gate
from bdnfs.serve.node.holdings import Accel, Holdings, Inline
from bdnfs.serve.node.metrics import TEXT_TYPE, Served
from bdnfs.serve.node.owning import Owning
from bdnfs.serve.node.telling import Telling
from bdnfs.serve.node.yielding import Yielding
from bdnfs.serve.tenants import host_of, is_loopback

_PIECE_BYTES = 1 << 18
_SEND_S = 30.0
_BODY_BYTES_MAX, _BODY_S = 1 << 16, 5.0
_RETRY_AFTER_S = 5
_ASKED_MAX = 1024
_JSON = b"application/json"
_TIERS_MAX = 16


class Self(NamedTuple):
    """Who this node is. org: its tenant's part of keys; only_local: no token, no TLS: the listener is loopback's."""

    name: str
    org: str
    only_local: bool


class NodeApp:
    """An ASGI application.

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
        self._calls: dict[bytes, tuple[str, Callable[[Scope, Receive, Send], Awaitable[None]]]] = {
            b"/v1/node": ("GET", self._node),
            b"/v1/report": ("POST", self._report),
            b"/metrics": ("GET", self._page),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        told = _Told(send)
        try:
            await self._answer(scope, receive, told)
        except trio.TooSlowError:
            return  # the client takes nothing
        except Exception as error:
            self._warn(self._bug(error))
            if not told.begun:
                await _say(told, 500, "a bug in bdnfs")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["raw_path"]
        if path == b"/healthz":
            await _reply(send, 200, b'{"status":"ok"}', _JSON)
            return
        refused = self._refuses(scope)
        if refused is not None:
            await _say(send, *refused, challenge=refused.status == 401)
        elif path.startswith(PREFIX.encode()):
            if scope["method"] == "GET":
                await self._chunk(scope, send)
            else:
                await _say(send, 405, "a chunk can be read, by GET, and nothing else")
        elif path in self._calls:
            method, call = self._calls[path]
            if scope["method"] == method:
                await call(scope, receive, send)
            else:
                await _say(send, 405, f"this is asked for by {method}")
        else:
            await _say(send, 404, "there is no such call")

    def _refuses(self, scope: Scope) -> Wrong | None:
        """Return why whoever asks gets nothing at all."""
        authorization, host = b"", b""
        for name, value in scope["headers"]:
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

    async def _chunk(self, scope: Scope, send: Send) -> None:
        asked = asked_of(scope["raw_path"], scope["query_string"], scope["headers"], self._me.org)
        if isinstance(asked, Wrong):
            self._served.refused["foreign" if asked.status == 403 else "wrong"] += 1
            await _say(send, *asked)
            return
        if self._under_way >= _ASKED_MAX:
            await self._later(send, "overloaded", 1)
            return
        self._under_way += 1
        try:
            await self._give(asked, send, own=asked.node == self._me.name and self._is_own(scope))
        finally:
            self._under_way -= 1

    async def _give(self, asked: Asked, send: Send, *, own: bool) -> None:
        rate = self._yielding.rate
        if not own and (self._yielding.paused or rate.wait_s() is None):
            why = "paused" if self._yielding.paused else "rate"
            await self._later(send, why, _RETRY_AFTER_S if self._yielding.paused else rate.retry_after_s())
            return
        try:
            found = await self._holdings.find(asked)
            if found is None and not asked.held:
                fetched = await self._owning.fetch(asked)
                found = self._holdings.fetched(asked, fetched)
        except NotFoundError:
            found = None
        except IntegrityError as error:
            self._warn(str(error))
            found = None
        except UnavailableError as error:
            await self._later(send, "mirror", max(1, round(error.retry_after_s or _RETRY_AFTER_S)))
            return
        except DeadlineError:
            await self._later(send, "overloaded", 1)
            return
        except BdnfsError as error:
            self._warn(str(error))
            await self._later(send, "mirror", _RETRY_AFTER_S)
            return
        if found is None:
            self._served.refused["missing"] += 1
            await _say(send, 404, "neither this node nor its mirror has this chunk")
            return
        if not own and not await rate.take(asked.size):
            await self._later(send, "rate", rate.retry_after_s())
            return
        self._served.sent(found.tier, asked.size)
        if isinstance(found, Accel):
            await _redirect(send, found, None if own else rate.bytes_s)
        else:
            await _inline(send, asked, found)

    async def _later(self, send: Send, why: str, retry_after_s: int) -> None:
        self._served.refused[why] += 1
        await _say(send, 503, f"not now: {why}", retry_after_s=retry_after_s)

    def _is_own(self, scope: Scope) -> bool:
        """Say whether a request comes from this very machine."""
        if not self._behind_nginx:
            client, server = scope["client"], scope["server"]
            return client is not None and server is not None and _is_same(client[0], server[0])
        named = {
            name: value.decode("latin-1") for name, value in scope["headers"] if name.startswith(b"bdnfs-")
        }
        return _is_same(named.get(b"bdnfs-client", ""), named.get(b"bdnfs-server", "-"))

    # -- the node itself --------------------------------------------------------------------------

    async def _node(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _reply(send, 200, msgspec.json.encode(self._telling.facts()), _JSON)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _reply(send, 200, self._telling.page(), TEXT_TYPE.encode())

    async def _report(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_own(scope):
            await _say(send, 403, "only this machine's own fills report here")
            return
        try:
            found = msgspec.json.decode(await _body(receive), type=dict[str, int])
        except UNREADABLE:
            await _say(send, 400, "a report is a JSON object: tier to bytes")
            return
        filled = self._served.filled
        for tier, size_bytes in found.items():
            if size_bytes > 0 and (tier in filled or len(filled) < _TIERS_MAX) and len(tier) < 32:
                filled[tier] += size_bytes
        await _reply(send, 200, b"{}", _JSON)


class _Told:
    """Passes an answer on, not waiting for ever, and knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self._send, self.begun = send, False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        with trio.fail_after(_SEND_S):
            await self._send(message)


def _is_same(client: str, server: str) -> bool:
    return client == server or is_loopback(client)


async def _redirect(send: Send, found: Accel, bytes_s: int | None) -> None:
    """Have nginx send a file."""
    headers = [
        (b"x-accel-redirect", found.location.encode()),
        (b"content-type", b"application/octet-stream"),
        (b"bdnfs-tier", found.tier.encode()),
        (b"content-length", b"0"),
    ]
    if bytes_s is not None:
        headers.append((b"x-accel-limit-rate", b"%d" % bytes_s))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _inline(send: Send, asked: Asked, found: Inline) -> None:
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % len(found.data)),
        (b"bdnfs-tier", found.tier.encode()),
    ]
    if found.file_bytes is not None:
        span = b"bytes %d-%d/%d" % (asked.start, asked.stop - 1, found.file_bytes)
        headers.append((b"content-range", span))
    status = 200 if found.file_bytes is None else 206
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for start in range(0, len(found.data), _PIECE_BYTES):
        piece = found.data[start : start + _PIECE_BYTES]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _say(
    send: Send, status: int, message: str, *, retry_after_s: int | None = None, challenge: bool = False
) -> None:
    more = [] if retry_after_s is None else [(b"retry-after", b"%d" % retry_after_s)]
    if challenge:
        more.append((b"www-authenticate", b"Bearer"))
    await _reply(send, status, msgspec.json.encode({"error": message}), _JSON, more)


async def _reply(
    send: Send, status: int, body: bytes, kind: bytes, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *(more or ())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes:
    """Return a small body; b"" for one that is larger or doesn't come."""
    body = bytearray()
    with trio.move_on_after(_BODY_S):
        while True:
            message = await receive()
            body += message.get("body", b"")
            if message["type"] != "http.request" or len(body) > _BODY_BYTES_MAX:
                return b""
            if not message.get("more_body", False):
                return bytes(body)
    return b""
