"""HTTP/1.1 for an ASGI application, by hypercorn on trio; ends in time whatever its clients do.

hypercorn's own loop takes any number of connections, waits forever for a client that reads nothing, and
ends with the first error that it didn't expect: so the loop is ours, and each connection hypercorn's.
"""

import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from bdnfs.serve.lines import Line, Lines

Stream = Line | trio.SSLStream[Line]
# Longer than the five seconds for which the official client keeps an idle connection, so that it ends it. A
# request's head has to come within this too.
_IDLE_S = 15.0
_HANDSHAKE_S = 10.0
_HEAD_BYTES_MAX = 16 << 10
# What is under way may end: a chunk on a line of 1 MB/s takes eight seconds.
_GRACE_S = 10.0
# After a connection is closed, what still runs for it.
_LINGER_S = 1.0


class Server:
    """Serves app on listeners.

    app: raises nothing
    say: takes a line for each connection that was none of HTTP's
    """

    def __init__(
        self,
        app: ASGIApp,
        listeners: Sequence[trio.SocketListener],
        tls: ssl.SSLContext | None,
        connections_max: int,
        say: Callable[[str], None],
    ) -> None:
        self._app = wrap_app(cast(Any, app), 0, "asgi")
        self._say = say
        self._config = Config()
        self._config.errorlog = None
        self._config.include_server_header = False
        self._config.keep_alive_timeout = _IDLE_S
        self._config.ssl_handshake_timeout = _HANDSHAKE_S
        self._config.h11_max_incomplete_size = _HEAD_BYTES_MAX
        self._context = WorkerContext(None)
        self._slots = trio.Semaphore(connections_max)
        self._lines: set[Line] = set()
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
            await self._context.terminated.set()
            with trio.move_on_after(_GRACE_S):
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(_cancels, waiting.cancel_scope, at_once)
                    waiting.start_soon(_cancels, waiting.cancel_scope, self._empty)
            for line in tuple(self._lines):
                line.abort()
            connections.cancel_scope.cancel()

    async def _connection(self, stream: Stream) -> None:
        line = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._lines.add(line)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_with, line, nursery.cancel_scope)
                state = ConnectionState({})
                await TCPServer(self._app, self._config, self._context, state, cast(Any, stream))
                nursery.cancel_scope.cancel()
        except Exception as error:
            # hypercorn's, for a request that nobody's client sends: h2c settings that are none, and the like.
            if kinds := set(_kinds(error)):
                self._say(f"- - a connection ended, for what came was not HTTP ({', '.join(sorted(kinds))})")
        finally:
            line.abort()
            self._lines.discard(line)
            self._slots.release()
            if not self._lines:
                self._emptied.set()

    async def _empty(self) -> None:
        while self._lines:
            self._emptied = trio.Event()
            await self._emptied.wait()


async def _cancels(scope: trio.CancelScope, event: Callable[[], Awaitable[object]]) -> None:
    await event()
    scope.cancel()


async def _end_with(line: Line, scope: trio.CancelScope) -> None:
    """End what runs for a connection that is closed: hypercorn waits on, for its timers and for what nobody reads."""
    await line.closed.wait()
    await trio.sleep(_LINGER_S)
    scope.cancel()


def _kinds(error: BaseException) -> Iterator[str]:
    """Yield what went wrong, less what only says that the connection broke."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _kinds(each)
    elif not isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError | OSError):
        yield type(error).__name__
