"""Peers that do as they are told: real sockets, one thread for each connection, any kind of misbehaviour."""

import contextlib
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PREFIX = "/v1/chunks/"


@dataclass
class Asked:
    """One request for a chunk, its connection, and the chunk. stopped: the peer ends."""

    path: str
    headers: Mapping[str, str]
    sock: socket.socket
    data: bytes
    stopped: threading.Event

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(data)

    def head(self, status: str, length: int, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())


Behaviour = Callable[[Asked], None]


def give(asked: Asked, tier: str = "share") -> None:
    asked.head("200 OK", len(asked.data), Bdnfs_Tier=tier)
    asked.send(asked.data)


def part(asked: Asked) -> None:
    """As a holder of the whole file answers."""
    span = asked.headers["range"].removeprefix("bytes=")
    asked.head(
        "206 Partial Content", len(asked.data), Bdnfs_Tier="node", Content_Range=f"bytes {span}/123456"
    )
    asked.send(asked.data)


def from_mirror(asked: Asked) -> None:
    give(asked, "mirror")


def wrong(asked: Asked) -> None:
    asked.data = bytes([asked.data[0] ^ 1]) + asked.data[1:]
    give(asked)


def other_range(asked: Asked) -> None:
    asked.head("206 Partial Content", len(asked.data), Content_Range="bytes 7-9/123456")
    asked.send(asked.data)


def short(asked: Asked) -> None:
    asked.head("200 OK", len(asked.data))
    asked.send(asked.data[:-10])
    asked.sock.shutdown(socket.SHUT_RDWR)


def shorter(asked: Asked) -> None:
    asked.head("200 OK", len(asked.data) - 1)
    asked.send(asked.data[:-1])


def long(asked: Asked) -> None:
    asked.head("200 OK", len(asked.data) + 1)
    asked.send(asked.data + b"x")


def chunked(asked: Asked) -> None:
    asked.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    asked.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(asked.data), asked.data))


def garbage(asked: Asked) -> None:
    asked.send(b"\x00\xff what is this\r\n\r\n")
    asked.sock.shutdown(socket.SHUT_RDWR)


def failing(asked: Asked) -> None:
    asked.head("500 Oops", 0)


def nobody(asked: Asked) -> None:
    """Ends the connection without a word."""
    asked.sock.shutdown(socket.SHUT_RDWR)


def missing(asked: Asked) -> None:
    asked.head("404 Not Found", 2)
    asked.send(b"{}")


def busy(asked: Asked) -> None:
    asked.head("503 Not Now", 0, Retry_After="3")


def refusing(asked: Asked) -> None:
    asked.head("401 Unauthorized", 0)


def hanging(asked: Asked) -> None:
    """Answers everything but this."""
    asked.stopped.wait(60)


def stalling(asked: Asked) -> None:
    """Sends a half, and then nothing."""
    asked.head("200 OK", len(asked.data))
    asked.send(asked.data[: len(asked.data) // 2])
    asked.stopped.wait(60)


@dataclass
class ScriptedPeer:
    """A node of a cluster, on loopback, from `with` to its end.

    chunks:    content, by digest
    behaviour: what it does when it is asked for one
    asked:     what it was asked for, in order
    is_mute:   it takes connections, and says nothing at all
    status:    what it says of its cluster, None: it has no such call
    reports:   what fills have told it
    """

    name: str
    chunks: dict[str, bytes]
    tls: ssl.SSLContext | None = None
    behaviour: Behaviour = give
    is_mute: bool = False
    status: dict[str, Any] | None = None
    asked: list[Asked] = field(default_factory=list)
    reports: list[dict[str, int]] = field(default_factory=list)
    port: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    _server: socketserver.ThreadingTCPServer | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> "ScriptedPeer":
        peer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                peer._connection(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it: its port is closed."""
        self.stopped.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _connection(self, sock: socket.socket) -> None:
        if self.is_mute:
            self.stopped.wait(60)
            return
        if self.tls is not None:
            sock = self.tls.wrap_socket(sock, server_side=True)
        with sock, sock.makefile("rb") as reader:
            while line := reader.readline():
                method, path, _ = line.decode().split()
                headers = {}
                while (field := reader.readline().decode().strip()) != "":
                    name, _, value = field.partition(":")
                    headers[name.lower()] = value.strip()
                body = reader.read(int(headers.get("content-length", 0)))
                asked = Asked(path, headers, sock, b"", self.stopped)
                if self.is_mute:
                    self.stopped.wait(60)
                    return
                self._answer(method, asked, body)

    def _answer(self, method: str, asked: Asked, body: bytes) -> None:
        if asked.path.startswith(PREFIX):
            asked.data = self.chunks[asked.path.partition("?")[0].rpartition("/")[2]]
            self.asked.append(asked)
            self.behaviour(asked)
        elif asked.path == "/healthz":
            asked.head("200 OK", 2)
            asked.send(b"ok")
        elif asked.path == "/v1/node" and self.status is not None:
            said = json.dumps(self.status).encode()
            asked.head("200 OK", len(said))
            asked.send(said)
        elif asked.path == "/v1/report" and method == "POST":
            self.reports.append(json.loads(body))
            asked.head("200 OK", 2)
            asked.send(b"{}")
        else:
            asked.head("404 Not Found", 0)
