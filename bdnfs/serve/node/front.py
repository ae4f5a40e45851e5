"""Where a node listens: nginx before a unix socket of ours where it is installed, else we ourselves."""

import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from bdnfs.cache.storage import storage_error
from bdnfs.core.errors import SpecError
from bdnfs.serve.node.http import Answer, HttpServer, Request
from bdnfs.serve.node.nginx import SOCKET, Nginx, config_text, find_nginx
from bdnfs.spec.cluster import ClusterConfig

_BACKLOG = 512
_LOOK_S = 1.0
_TAKEN_S, _AGAIN_S = 3.0, 0.05

Waits = Callable[[], Awaitable[object]]


class Front:
    """Listeners that are open, and the nginx before them, or None. addresses: where peers connect to."""

    def __init__(
        self,
        listeners: Sequence[trio.SocketListener],
        addresses: Sequence[str],
        tls: ssl.SSLContext | None,
        nginx: Nginx | None,
    ) -> None:
        self._listeners, self._tls = listeners, tls
        self.addresses, self.nginx = addresses, nginx
        self._ended, self._emptied = trio.Event(), trio.Event()

    async def run(
        self,
        app: Callable[[Request], Awaitable[Answer]],
        connections_max: int,
        at_once: Waits,
        bug: Callable[[BaseException], object],
    ) -> None:
        """Serve app until `end`; at_once: returns where what is under way may not even end. bug: as in HttpServer."""
        try:
            tls = None if self.nginx else self._tls
            server = HttpServer(app, self._listeners, tls, connections_max, bug)
            await server.run(self._ended.wait, at_once)
        finally:
            self._emptied.set()

    async def end(self, at_once: Waits) -> None:
        """Take no more; return when what is under way has ended, or some seconds have passed, or at_once returns."""
        if self.nginx is not None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancels, nursery.cancel_scope, at_once)
                await self.nginx.stop()
                nursery.cancel_scope.cancel()
        self._ended.set()
        await self._emptied.wait()


async def open_front(
    config: ClusterConfig,
    tls: ssl.SSLContext | None,
    directory: Path,
    connections_max: int,
    warn: Callable[[str], None],
    *,
    nginx: bool,
) -> Front:
    """Listen where config says. directory: the node's own; nginx: use it if it is installed.

    Raises SpecError where nobody can listen there.
    """
    listeners = await _listen(config)
    addresses = [_shown(each.socket.getsockname()) for each in listeners]
    program = find_nginx() if nginx else None
    if program is not None:
        for each in listeners:  # nginx is to have them
            await each.aclose()
        text = config_text(addresses, config.tls, os.getpid(), connections_max)
        found = Nginx(program, directory, text, warn, lambda: all(map(_answers, addresses)))
        try:
            inner = await _listen_at(directory)
            if await found.start():
                return Front([inner], addresses, tls, found)
        except OSError as error:
            raise storage_error(directory, "written", error) from error
        warn("this node sends its chunks itself, at more CPU")
        await inner.aclose()
        listeners = await _listen(config)
    return Front(listeners, addresses, tls, None)


async def _cancels(scope: trio.CancelScope, event: Waits) -> None:
    await event()
    scope.cancel()


async def _listen(config: ClusterConfig) -> list[trio.SocketListener]:
    host = None if config.host == "*" else config.host
    until_s = trio.current_time() + _TAKEN_S
    while True:
        try:
            return list(await trio.open_tcp_listeners(config.port, host=host, backlog=_BACKLOG))
        except OSError as error:
            # The nginx of a node that was killed a moment ago may be about to end.
            if error.errno != errno.EADDRINUSE or trio.current_time() >= until_s:
                raise SpecError(
                    f"cluster: can't listen on {config.host}:{config.port}: {error.strerror or error}; is another "
                    "node, or something else, there? Set listen in cluster to another port"
                ) from None
            await trio.sleep(_AGAIN_S)


async def _listen_at(directory: Path) -> trio.SocketListener:
    """Listen on a unix socket, by its directory's descriptor: a cache may lie deeper than an address is long."""
    path = directory / SOCKET
    path.unlink(missing_ok=True)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listening = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await listening.bind(f"/proc/self/fd/{fd}/{SOCKET}")
        listening.listen(_BACKLOG)
    finally:
        os.close(fd)
    return trio.SocketListener(listening)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host).strip("[]")
    try:
        socket.create_connection((host, int(port)), _LOOK_S).close()
    except OSError:
        return False
    return True


def _shown(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
