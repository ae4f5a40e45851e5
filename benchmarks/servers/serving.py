"""HTTP/1.1 on loopback: a thread per connection, bodies by sendfile, everything noted."""

import os
import re
import select
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import parse_qs, unquote, urlsplit

from benchmarks.servers.faults import Fault, Faults

SLICE_BYTES = 4 << 20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


class Request(NamedTuple):
    """One request as it was answered; path is unquoted and without its query, status 0 is a reset."""

    method: str
    path: str
    range: str | None
    status: int


class Ledger:
    """What was asked and how many bytes of file content went out; shared by a server's listeners."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: list[Request] = []
        self.bytes_sent = 0
        self.strays: list[str] = []

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def note_stray(self, authorization: str) -> None:
        """Note an Authorization header that arrived where none belongs."""
        with self._lock:
            self.strays.append(authorization)

    def count(self, sent_bytes: int) -> None:
        with self._lock:
            self.bytes_sent += sent_bytes

    def reset(self) -> None:
        with self._lock:
            self.requests.clear()
            self.strays.clear()
            self.bytes_sent = 0


class Exchange(BaseHTTPRequestHandler):
    """One connection; `target` and `query` are the current request's, `respond*` answer it once."""

    protocol_version = "HTTP/1.1"
    server_version = "loopback"
    sys_version = ""
    disable_nagle_algorithm = True
    target: str
    query: Mapping[str, str]
    quiet = False
    _fault: Fault | None = None

    @property
    def listener(self) -> "Listener":
        return cast(Listener, self.server)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.target = parts.path
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.quiet = self.target == "/_stats"
        self._fault = None if self.quiet else self.listener.faults.take(self.command, unquote(self.target))
        try:
            if not self._strike():
                self.listener.answer(self)
        except ConnectionError:
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def respond(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Answer with a body held in memory; it is not counted as file content."""
        self._begin(status, len(body), headers or {})
        if self.command != "HEAD":
            self._send(body, 0, len(body))

    def respond_file(self, file: Path, etag: str, headers: Mapping[str, str], *, ranges: bool = True) -> None:
        """Answer with the file or the single range asked for; its bytes are counted.

        An If-Match that doesn't hold is a 412, an If-Range that doesn't hold the whole file.
        """
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            headers = {"ETag": etag, "Accept-Ranges": "bytes" if ranges else "none", **headers}
            if self.headers.get("If-Match", etag) not in (etag, "*"):
                return self.respond(412, b"", headers)
            start, stop, status = 0, size, 200
            ranges = ranges and not (self._fault and self._fault.ignore_range)
            asked = _RANGE.fullmatch(self.headers.get("Range", "")) if ranges else None
            if asked and asked.group(0) != "bytes=-" and self.headers.get("If-Range", etag) == etag:
                start, stop = _bounds(asked[1], asked[2], size)
                status = 206
                if start >= stop:
                    return self.respond(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            self._begin(status, stop - start, headers)
            if self.command != "HEAD":
                self._send(stream.fileno(), start, stop - start)
            return None

    # ---- faults --------------------------------------------------------------------------------

    def _strike(self) -> bool:
        """Do what the fault does instead of an answer; return whether it did."""
        fault = self._fault
        if fault is None:
            return False
        if fault.delay_s:
            self.listener.closing.wait(fault.delay_s)
        if fault.reset:
            self.log_request(0)
            # Linger for no time: closing sends RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.listener.drop(self.connection)
            return True
        if fault.redirect_to is not None:
            self.respond(302, b"", {"Location": fault.redirect_to})
            return True
        if fault.status is not None:
            self.respond(fault.status, fault.body.encode())
            return True
        return False

    def _send(self, body: bytes | int, start: int, size: int) -> None:
        """Send [start, start + size) of bytes or of an open file, as the fault distorts it."""
        fault = self._fault or Fault()
        stop, step, pause_s = size, SLICE_BYTES, 0.0
        if fault.stall:
            stop = size // 2
        if fault.truncate_at is not None:
            stop = min(fault.truncate_at, size)
        if fault.slow_bytes_per_s:
            step = max(1, int(fault.slow_bytes_per_s / 20))
            pause_s = step / fault.slow_bytes_per_s
        sent = 0
        while sent < stop:
            if pause_s and self.listener.closing.wait(pause_s):
                raise ConnectionAbortedError("the server is closing")
            wrong = start + size // 2 if fault.wrong_bytes else None
            sent += self._send_slice(body, start + sent, min(step, stop - sent), wrong)
        if fault.stall:
            self._await_departure()
        if stop < size:
            self.close_connection = True

    def _send_slice(self, body: bytes | int, start: int, count: int, wrong: int | None) -> int:
        """Send at most count bytes from start on, the one at wrong flipped; return how many went."""
        if isinstance(body, bytes):
            return self._send_piece(body[start : start + count], start, wrong)
        # Counted before they go and put right after, so that whoever has them sees them counted.
        ledger, sent = self.listener.ledger, 0
        ledger.count(count)
        try:
            if wrong is None:
                sent = os.sendfile(self.connection.fileno(), body, start, count)
            else:
                sent = self._send_piece(os.pread(body, count, start), start, wrong)
        finally:
            ledger.count(sent - count)
        if not sent:
            raise ConnectionAbortedError("the file became shorter than it was announced")
        return sent

    def _send_piece(self, piece: bytes, start: int, wrong: int | None) -> int:
        if wrong is not None and start <= wrong < start + len(piece):
            at = wrong - start
            piece = piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
        self.wfile.write(piece)
        return len(piece)

    def _await_departure(self) -> None:
        self.close_connection = True
        departed = select.poll()
        departed.register(self.connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        departed.poll()

    # ---- the rest ------------------------------------------------------------------------------

    def _begin(self, status: int, size: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        changed = self._fault.headers if self._fault else {}
        hidden = {name.lower() for name in changed}
        for name, value in headers.items():
            if name.lower() not in hidden:
                self.send_header(name, value)
        for name, value in changed.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if not self.quiet:
            path = unquote(urlsplit(self.path).path)
            self.listener.ledger.note(Request(self.command, path, self.headers.get("Range"), int(code)))

    def log_message(self, *_: object) -> None:
        pass


class Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One listening socket and its connections; `answer` is called in a thread per connection."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], answer: Callable[[Exchange], None], ledger: Ledger, faults: Faults
    ) -> None:
        self.answer = answer
        self.ledger = ledger
        self.faults = faults
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        super().__init__(address, Exchange)
        self._accepting = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def process_request(self, request: object, client_address: object) -> None:
        connection = cast(socket.socket, request)
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        with self._lock:
            self._connections[connection] = thread
        thread.start()

    def shutdown_request(self, request: object) -> None:
        self.drop(cast(socket.socket, request))

    def drop(self, connection: socket.socket) -> None:
        """Close connection as its options say."""
        with self._lock:
            self._connections.pop(connection, None)
        connection.close()

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that goes away in the middle of anything is no error of the server's.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def close(self) -> None:
        """End every connection, stalled ones included, and every thread."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            left = dict(self._connections)
        for connection in left:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in (*left.values(), self._accepting):
            thread.join(10)


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(int(last) + 1, size) if last else size
