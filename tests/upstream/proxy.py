"""Faults before any HTTP server: what a request meets is scripted, or thrown by dice.

A reverse proxy, so that a real server answers and only what the fault names goes wrong. Answers are
held in memory: what is served here is small.
"""

import http.client
import io
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from benchmarks.servers.faults import Fault, Faults
from tests.upstream.accepting import Accepting

_HOP_HEADERS = frozenset(("connection", "content-length", "keep-alive", "transfer-encoding"))
_SERVER_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Twist(Fault):
    """A fault with what only the proxy can do.

    length_off:   Content-Length says so many bytes more than come, or (negative) fewer
    head_pause_s: the head comes byte by byte, so far apart
    act:          called before the request is passed on: what upstream changes just then
    """

    length_off: int = 0
    head_pause_s: float = 0.0
    act: Callable[[], object] | None = None


class Asked(NamedTuple):
    """One request as it came; path is unquoted and without its query, headers' names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


class _Answer(NamedTuple):
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    length: int  # of the body, or of what a HEAD asked about


class FaultyProxy(Accepting):
    """Stands before the server at port.

    places: base URLs that are replaced in Location and Link, so that clients come by here again
    """

    def __init__(self, port: int, faults: Faults, places: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.faults = faults
        self.places: Mapping[str, str] = places or {}
        self.asked: list[Asked] = []
        self._server_port = port

    def serve(self, client: socket.socket) -> None:
        with client.makefile("rb") as requests:
            while line := requests.readline().decode("latin-1").rstrip("\r\n"):
                headers = {name.lower(): value for name, value in http.client.parse_headers(requests).items()}
                body = requests.read(int(headers.get("content-length", 0)))
                method, target, _ = line.split(" ")
                if not self._exchange(client, method, target, headers, body):
                    return

    def _exchange(
        self, client: socket.socket, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> bool:
        """Answer one request; return whether the connection goes on."""
        asked = Asked(method, unquote(urlsplit(target).path), headers)
        self.asked.append(asked)
        fault = self.faults.take(method, asked.path) or Fault()
        twist = fault if isinstance(fault, Twist) else Twist()
        if twist.act is not None:
            twist.act()
        if fault.delay_s and self.closing.wait(fault.delay_s):
            return False
        if fault.reset:
            self.drop(client, reset=True)
            return False
        if fault.redirect_to is not None:
            answer = _Answer(302, "Found", [("Location", fault.redirect_to)], b"", 0)
        elif fault.status is not None:
            said = fault.body.encode()
            answer = _Answer(fault.status, "Fault", [], said, len(said))
        else:
            passed = {name: value for name, value in headers.items() if name not in _HOP_HEADERS}
            if fault.ignore_range:
                passed.pop("range", None)
            answer = self._ask(method, target, passed, body)
        self._send_head(client, answer, fault, twist)
        return method == "HEAD" or self._send_body(client, answer, fault, twist)

    def _ask(self, method: str, target: str, headers: dict[str, str], body: bytes) -> _Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._server_port, timeout=_SERVER_TIMEOUT_S)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if body:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            with connection.getresponse() as response:
                found = response.read()
                length = int(response.headers.get("Content-Length", len(found)))
                return _Answer(response.status, response.reason, response.headers.items(), found, length)
        except (http.client.HTTPException, OSError):
            return _Answer(502, "Bad Gateway", [], b"", 0)
        finally:
            connection.close()

    def _send_head(self, client: socket.socket, answer: _Answer, fault: Fault, twist: Twist) -> None:
        instead = {name.lower() for name in fault.headers} | _HOP_HEADERS
        kept = [
            (name, self._placed(name, value)) for name, value in answer.headers if name.lower() not in instead
        ]
        length = [("Content-Length", str(max(0, answer.length + twist.length_off)))]
        lines = [f"{name}: {value}\r\n" for name, value in (*kept, *fault.headers.items(), *length)]
        head = f"HTTP/1.1 {answer.status} {answer.reason}\r\n{''.join(lines)}\r\n".encode("latin-1")
        if not twist.head_pause_s:
            client.sendall(head)
            return
        for byte in head:
            client.sendall(bytes((byte,)))
            if self.closing.wait(twist.head_pause_s):
                raise ConnectionAbortedError("the proxy is closing")

    def _send_body(self, client: socket.socket, answer: _Answer, fault: Fault, twist: Twist) -> bool:
        body, stop = bytearray(answer.body), len(answer.body)
        if fault.wrong_bytes and body:
            body[stop // 2] ^= 0xFF
        if fault.stall:
            stop //= 2
        if fault.truncate_at is not None:
            stop = min(stop, fault.truncate_at)
        reader, left = io.BytesIO(body[:stop]), stop
        step = max(1, int(fault.slow_bytes_per_s / 20)) if fault.slow_bytes_per_s else 1 << 20
        while left:
            piece = reader.read(step)
            client.sendall(piece)
            left -= len(piece)
            if fault.slow_bytes_per_s and self.closing.wait(len(piece) / fault.slow_bytes_per_s):
                return False
        if fault.stall:
            self.await_departure(client)
        # Bytes after the announced ones stay on the connection: the client must not take them for an answer.
        return stop == len(answer.body) and twist.length_off <= 0

    def _placed(self, name: str, value: str) -> str:
        if name.lower() in ("location", "link"):
            for real, here in self.places.items():
                value = value.replace(real, here)
        return value
