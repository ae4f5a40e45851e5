"""Faults before any TCP server, for what speaks no HTTP: one fault a connection, at a byte of choice."""

import contextlib
import socket
import threading
from dataclasses import dataclass

from benchmarks.servers.faults import Fault, Faults
from tests.upstream.accepting import Accepting


@dataclass(frozen=True, kw_only=True)
class Cut(Fault):
    """A fault of a connection. at: after so many bytes of what the server says.

    Of a Fault's fields these count: delay_s (once), stall (for good, both ways), reset, truncate_at
    (instead of at), wrong_bytes (one), slow_bytes_per_s.
    """

    at: int = 0

    @property
    def place(self) -> int:
        return self.at if self.truncate_at is None else self.truncate_at


class FaultyWire(Accepting):
    """Relays to the server at port. said_bytes: what the server has said on the last connection."""

    def __init__(self, port: int, faults: Faults) -> None:
        super().__init__()
        self.faults = faults
        self.connections = 0
        self.said_bytes = 0
        self._server_port = port

    def serve(self, client: socket.socket) -> None:
        self.connections += 1
        fault = self.faults.take("CONNECT", "")
        cut = fault if isinstance(fault, Cut) else None
        server = self.keep(socket.create_connection(("127.0.0.1", self._server_port), 30.0))
        server.settimeout(None)
        stalled = threading.Event()
        try:
            self.start(self._pump_up, client, server, stalled)
            self._pump_down(client, server, stalled, cut)
        finally:
            self.drop(server)

    def _pump_up(self, client: socket.socket, server: socket.socket, stalled: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while not stalled.is_set() and (piece := client.recv(65536)):
                server.sendall(piece)
        if not stalled.is_set():
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_WR)

    def _pump_down(
        self, client: socket.socket, server: socket.socket, stalled: threading.Event, cut: Cut | None
    ) -> None:
        self.said_bytes, slow = 0, None
        while piece := server.recv(4096):
            if cut is not None and self.said_bytes + len(piece) > cut.place:
                before = max(0, cut.place - self.said_bytes)
                client.sendall(piece[:before])
                self.said_bytes, piece = self.said_bytes + before, piece[before:]
                if cut.delay_s and self.closing.wait(cut.delay_s):
                    return
                if cut.stall:
                    stalled.set()
                    self.await_departure(client)
                    return
                if cut.reset or cut.truncate_at is not None:
                    self.drop(client, reset=cut.reset)
                    return
                if cut.wrong_bytes:
                    piece = bytes((piece[0] ^ 0xFF,)) + piece[1:]
                slow, cut = cut.slow_bytes_per_s, None
            self._send(client, piece, slow)
            self.said_bytes += len(piece)

    def _send(self, client: socket.socket, piece: bytes, slow: float | None) -> None:
        step = max(1, int(slow / 20)) if slow else len(piece)
        for start in range(0, len(piece), step):
            client.sendall(piece[start : start + step])
            if slow and self.closing.wait(step / slow):
                return
