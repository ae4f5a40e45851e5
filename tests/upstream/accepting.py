"""A listener on loopback with a thread for each connection, all of which end with it."""

import contextlib
import select
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Accepting(ABC):
    """Listens from `with` on; `serve` is called in a thread of its own for each connection."""

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def serve(self, client: socket.socket) -> None: ...

    def __enter__(self) -> Self:
        self.start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        with self._lock:
            left = [self._listener, *self._open]
        for each in left:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def start(self, run: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def keep(self, connection: socket.socket) -> socket.socket:
        """Let connection end with the listener, wherever it leads."""
        with self._lock:
            self._open.add(connection)
        return connection

    def drop(self, connection: socket.socket, *, reset: bool = False) -> None:
        """Close connection; with a reset (RST, not FIN) if so asked."""
        with self._lock:
            self._open.discard(connection)
        with contextlib.suppress(OSError):
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # A thread that reads from it would keep it open.
            connection.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
        connection.close()

    def await_departure(self, connection: socket.socket) -> None:
        """Return once the other side has gone away, or the listener closes."""
        departed = select.poll()
        departed.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        while not self.closing.is_set() and not departed.poll(200):
            pass

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.start(self._serve, self.keep(client))

    def _serve(self, client: socket.socket) -> None:
        try:
            # Who goes away in the middle of anything is no error here.
            with contextlib.suppress(OSError):
                self.serve(client)
        finally:
            self.drop(client)
