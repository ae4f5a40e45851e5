"""HTTP/1.1 for a node, by h11 on trio: a fifth of what an ASGI server takes of the CPU that its job lives on."""

import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import h11
import trio

from bdnfs.serve.lines import Line, Lines

Stream = Line | trio.SSLStream[Line]
Headers = list[tuple[bytes, bytes]]
# Longer than our nginx (10 s) and our own clients (10 s) keep an idle connection: so they end it. A request's head
# has to come within this, too.
_IDLE_S = 15.0
_HANDSHAKE_S = 10.0
_HEAD_BYTES_MAX = 16 << 10
_BODY_BYTES_MAX, _BODY_S = 1 << 16, 5.0
_RECEIVE_BYTES = 1 << 16
# What is under way may end: a chunk on a line of 1 MB/s takes eight seconds.
_GRACE_S = 10.0
_REASONS = {
    200: b"OK",
    206: b"Partial Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Content Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}


class Request(NamedTuple):
    """What was asked.

    path, query:    as they were sent
    headers:        names in lower case
    client, server: the two ends' addresses, "" where they are a unix socket's
    """

    method: bytes
    path: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    client: str
    server: str


class Answer(NamedTuple):
    """What is said to it. sent: is called once its body is with the kernel, or nobody wants it any more."""

    status: int
    headers: Headers
    body: bytes | memoryview
    sent: Callable[[], object] = bool


class HttpServer:
    """Serves on listeners.

    answers: gives the answer to each request; raises nothing
    bug:     is told of an error that nobody expected: it ends its connection, and nothing else
    """

    def __init__(
        self,
        answers: Callable[[Request], Awaitable[Answer]],
        listeners: Sequence[trio.SocketListener],
        tls: ssl.SSLContext | None,
        connections_max: int,
        bug: Callable[[BaseException], object],
    ) -> None:
        self._answers, self._bug = answers, bug
        self._slots = trio.Semaphore(connections_max)
        self._lines: set[Line] = set()
        self._idle: set[trio.CancelScope] = set()
        self._ending = False
        self._emptied = trio.Event()
        opened = [Lines(each, self._slots) for each in listeners]
        self._listeners: list[Any] = (
            opened if tls is None else [trio.SSLListener(each, tls, https_compatible=True) for each in opened]
        )

    async def run(
        self, ended: Callable[[], Awaitable[object]], at_once: Callable[[], Awaitable[object]]
    ) -> None:
        """Serve until `ended` returns; then let what is under way end, until `at_once` returns, or for some time."""
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(
                        trio.serve_listeners, self._connection, self._listeners, handler_nursery=connections
                    )
                )
                await ended()
                accepting.cancel_scope.cancel()
            self._ending = True
            for scope in self._idle:
                scope.cancel()
            with trio.move_on_after(_GRACE_S):
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(_cancels, waiting.cancel_scope, at_once)
                    waiting.start_soon(_cancels, waiting.cancel_scope, self._empty)
            for line in tuple(self._lines):
                line.abort()
            connections.cancel_scope.cancel()

    async def _empty(self) -> None:
        while self._lines:
            self._emptied = trio.Event()
            await self._emptied.wait()

    async def _connection(self, stream: Stream) -> None:
        line = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._lines.add(line)
        try:
            if isinstance(stream, trio.SSLStream):
                with trio.fail_after(_HANDSHAKE_S):
                    await stream.do_handshake()
            await self._talk(stream, line)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError):
            pass  # the client went away, or is none of ours
        except Exception as error:
            self._bug(error)
        finally:
            line.abort()
            self._lines.discard(line)
            self._slots.release()
            self._emptied.set()

    async def _talk(self, stream: Stream, line: Line) -> None:
        client, server = _host(line.socket.getpeername()), _host(line.socket.getsockname())
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
        while not self._ending:
            try:
                head = await self._head(http, stream)
                if head is None:
                    return
                body = await _body(http, stream)
            except h11.RemoteProtocolError:
                if http.our_state is h11.IDLE:
                    await _send(
                        http, stream, Answer(400, [(b"content-length", b"0"), (b"connection", b"close")], b"")
                    )
                return
            if body is None:
                await _send(
                    http, stream, Answer(413, [(b"content-length", b"0"), (b"connection", b"close")], b"")
                )
                return
            path, _, query = bytes(head.target).partition(b"?")
            request = Request(bytes(head.method), path, query, head.headers, body, client, server)
            answer = await self._answers(request)
            try:
                await _send(http, stream, answer._replace(body=b"") if head.method == b"HEAD" else answer)
            finally:
                answer.sent()
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _head(self, http: h11.Connection, stream: Stream) -> h11.Request | None:
        """Return the next request's head; None where none comes."""
        with trio.move_on_after(_IDLE_S) as idle:
            self._idle.add(idle)
            try:
                event = await _next(http, stream)
            finally:
                self._idle.discard(idle)
            return event if isinstance(event, h11.Request) else None
        return None


async def _next(http: h11.Connection, stream: Stream) -> Any:
    while (event := http.next_event()) is h11.NEED_DATA:
        if http.they_are_waiting_for_100_continue:
            await stream.send_all(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        http.receive_data(bytes(await stream.receive_some(_RECEIVE_BYTES)))
    return event


async def _body(http: h11.Connection, stream: Stream) -> bytes | None:
    """Return a request's small body, None where it is larger or doesn't come."""
    first = http.next_event()
    if isinstance(first, h11.EndOfMessage):  # nearly all have none
        return b""
    body = bytes(first.data) if isinstance(first, h11.Data) else b""
    with trio.move_on_after(_BODY_S):
        while True:
            event = await _next(http, stream)
            if isinstance(event, h11.EndOfMessage):
                return body
            if not isinstance(event, h11.Data) or len(body) + len(event.data) > _BODY_BYTES_MAX:
                return None
            body += event.data
    return None


async def _send(http: h11.Connection, stream: Stream, answer: Answer) -> None:
    head = http.send(
        h11.Response(
            status_code=answer.status, headers=answer.headers, reason=_REASONS.get(answer.status, b"")
        )
    )
    # As it is: h11 only counts it, and copies nothing.
    pieces = http.send_with_data_passthrough(h11.Data(data=answer.body)) if answer.body else None  # type: ignore[arg-type]
    end = http.send(h11.EndOfMessage()) or b""
    if not pieces:
        await stream.send_all((head or b"") + end)
        return
    if len(answer.body) <= _RECEIVE_BYTES:
        await stream.send_all(b"".join([head or b"", *pieces, end]))
        return
    await stream.send_all(head or b"")
    for piece in pieces:
        await stream.send_all(piece)
    if end:
        await stream.send_all(end)


async def _cancels(scope: trio.CancelScope, event: Callable[[], Awaitable[object]]) -> None:
    await event()
    scope.cancel()


def _host(address: object) -> str:
    """Return the host of a socket's address; "" of a unix socket's."""
    return str(address[0]) if isinstance(address, tuple) else ""
