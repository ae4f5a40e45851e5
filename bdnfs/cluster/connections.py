"""HTTP/1.1 to one peer, over connections that are kept. Blocking, of several threads' use.

http.client itself, for whoever asks two peers at once has to end one of them, also while it waits for an answer's
first byte: that takes the socket, which a pool of urllib3's keeps to itself.
"""

import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

from bdnfs.core.errors import BdnfsError, CredentialsError, IntegrityError, UnavailableError, UpstreamError

# A peer is in the same building: who does not take a connection in a second will not.
CONNECT_S = 1.0
# Before the server's own 15 s: a connection that it ends just as it is used costs another try.
_IDLE_S = 10.0
_IDLE_MAX = 64
_DRAIN_BYTES_MAX = 64 * 1024
_RETRY_AFTER_S_MAX = 300.0
_FOREIGN = (http.client.HTTPException, OSError, ValueError)


class Connections:
    """Connections to one peer: those that are idle, and new ones."""

    def __init__(self, address: str, at: str, tls: ssl.SSLContext | None) -> None:
        """address: HOST:PORT, whose host its certificate has to name; at: HOST:PORT where it is."""
        self._address, self._at, self._tls = address, at, tls
        self._idle: list[tuple[float, Connection]] = []
        self._closed = False
        self._lock = threading.Lock()

    def take(self, timeout_s: float) -> "Connection":
        """Return an idle connection, or one that is yet to be made."""
        while True:
            with self._lock:
                since_s, kept = self._idle.pop() if self._idle else (0.0, None)
            if kept is None:
                host, _, port = self._address.rpartition(":")
                at_host, _, at_port = self._at.rpartition(":")
                at = (at_host.strip("[]"), int(at_port))
                return Connection(host.strip("[]"), int(port), at, self._tls, timeout_s)
            if time.monotonic() - since_s < _IDLE_S and kept.is_quiet():
                kept.set_timeout(timeout_s)
                return kept
            kept.close()

    def give(self, connection: "Connection") -> None:
        """Take back a connection whose answer was read."""
        with self._lock:
            if len(self._idle) < _IDLE_MAX and not self._closed:
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()

    def close(self) -> None:
        """Close the idle connections; those in use end with their answers."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for _, connection in idle:
            connection.close()


class Exchange:
    """One request and its answer on one connection, which is kept if the answer was read to its end."""

    def __init__(
        self, connections: Connections, headers: Mapping[str, str], doing: str, timeout_s: float
    ) -> None:
        """headers: of every request; doing: what errors say was being done."""
        self._connections, self._headers = connections, headers
        self.doing, self._timeout_s = doing, timeout_s
        self._connection: Connection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._aborted = False

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> http.client.HTTPResponse:
        """Return the answer, its body still to be read."""
        headers = {**self._headers, **headers}
        while True:
            connection = self._connection = self._connections.take(self._timeout_s)
            kept = connection.sock is not None
            if self._aborted:
                raise UnavailableError(f"{self.doing}: was ended on this side")
            try:
                connection.request(method, path, body, headers)
                self._response = connection.getresponse()
                return self._response
            except (ConnectionError, http.client.BadStatusLine):
                connection.close()
                # It ended a kept connection just as it was taken. There are only so many, so this ends.
                if not kept or self._aborted:
                    raise

    def abort(self) -> None:
        self._aborted = True
        connection = self._connection
        if connection is not None:
            connection.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        connection, response = self._connection, self._response
        keep = connection is not None and response is not None and not self._aborted
        if keep and (error is None or isinstance(error, BdnfsError)):
            with suppress(*_FOREIGN):  # the rest of an answer that nobody wants
                assert response is not None
                left = response.length
                if not response.isclosed() and left is not None and left < _DRAIN_BYTES_MAX:
                    response.read()
            keep = response is not None and response.isclosed() and not response.will_close
        else:
            keep = False
        if connection is not None:
            if keep:
                self._connections.give(connection)
            else:
                connection.close()
        if isinstance(error, _FOREIGN):
            raise self._foreign(error) from None

    def _foreign(self, error: BaseException) -> BdnfsError:
        if self._aborted:
            return UnavailableError(f"{self.doing}: was ended on this side")
        if isinstance(error, ssl.SSLCertVerificationError):
            return CredentialsError(
                f"{self.doing}: its certificate is not trusted ({error.verify_message}); it has to name "
                "the address and come from the CA in cluster.tls"
            )
        if isinstance(error, ssl.SSLError):
            return CredentialsError(f"{self.doing}: no TLS with it ({error.reason or 'refused'})")
        if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
            return UnavailableError(f"{self.doing}: it ended the connection before its answer")
        if isinstance(error, http.client.HTTPException | ValueError):
            return IntegrityError(f"{self.doing}: it answered with what is not HTTP ({type(error).__name__})")
        if isinstance(error, TimeoutError):
            return UnavailableError(f"{self.doing}: no answer in time")
        said = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        return UnavailableError(f"{self.doing}: {said}")


class Connection(http.client.HTTPConnection):
    """A connection to where a peer is, which its certificate names."""

    def __init__(
        self, host: str, port: int, at: tuple[str, int], tls: ssl.SSLContext | None, timeout_s: float
    ) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._timeout_s = timeout_s
        self._at, self._tls = at, tls
        self.sock: Any = None

    def connect(self) -> None:
        connected = socket.create_connection(self._at, min(CONNECT_S, self._timeout_s))
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connected = self._tls.wrap_socket(connected, server_hostname=self.host)
            connected.settimeout(self._timeout_s)
        except BaseException:
            connected.close()
            raise
        self.sock = connected

    def set_timeout(self, timeout_s: float) -> None:
        self.sock.settimeout(timeout_s)

    def is_quiet(self) -> bool:
        """Say whether the peer has neither ended it nor sent what nobody asked for."""
        if self.sock is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """Wake the thread that uses it; that one closes it."""
        sock = self.sock
        if sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS, whose own would wait


def status_error(doing: str, response: http.client.HTTPResponse) -> BdnfsError:
    """Return what a refusal means."""
    status = response.status
    if status in (401, 403):
        return CredentialsError(
            f"{doing}: it refuses this node ({status}); token_file or tls, and tenant, have to be the same on all nodes"
        )
    if status == 503:
        return UnavailableError(f"{doing}: it is busy (503)", retry_after_s=_retry_after_s(response))
    if status >= 500:
        return UnavailableError(f"{doing}: it failed ({status})")
    return UpstreamError(f"{doing}: it answered {status}")


def _retry_after_s(response: http.client.HTTPResponse) -> float:
    said = response.headers.get("Retry-After", "")
    return min(float(said), _RETRY_AFTER_S_MAX) if said.isascii() and said.isdigit() else 1.0
