"""What the service does where clients, the mirror or its objects are bad."""

import contextlib
import errno
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.node import until
from tests.contract.servers import child
from tests.mirror.stores import S3Stores
from tests.serve.served import FILES, Served, fill
from tests.serve.signing import fetch, signed
from tests.serve.wire import connected, largest, request, target_of

Serve = Callable[..., Served]


def test_credentials_end(serve: Serve, mirror: str) -> None:
    service = serve(mirror=mirror, serve={"credentials_for": "1s"})
    opened = service.opened("acme", "tiny")
    until(
        lambda: fetch(service, opened["origin"], target_of(opened)).code == "ExpiredToken",
        "the credentials to expire",
    )


def test_wrong_bytes_are_never_sent(serve: Serve, mirror: str) -> None:
    service = serve(mirror=mirror)
    opened = service.opened("acme", "tiny")
    target = target_of(opened)
    path = Path(mirror) / target.removeprefix(f"/{opened['origin']['bucket']}/")
    right = path.read_bytes()
    wrong = bytearray(right)
    wrong[100] ^= 1
    for content in (bytes(wrong), right[:-1], right + b"x", b""):
        path.chmod(0o644)
        path.write_bytes(content)
        answer = fetch(service, opened["origin"], target)
        assert (answer.status, answer.code) == (500, "InternalError")
        assert path.name.encode() in answer.body
        assert mirror.encode() not in answer.body
    path.write_bytes(right)
    (Path(mirror) / ".bdnfs/types" / path.relative_to(mirror)).unlink()
    assert fetch(service, opened["origin"], target).status == 502
    until(lambda: f"{path.name} does not hold the bytes" in service.err, "the line that says so")
    path.unlink()
    assert fetch(service, opened["origin"], target).code == "NoSuchKey"


def test_a_mirror_that_is_away(serve: Serve) -> None:
    stores = S3Stores()
    with child(stores.argv, stores.port):
        url = stores.fresh_url()
        store = stores.open(url)
        fill(store, "default", "tiny", FILES)
        store.close()
        service = serve(mirror=url, environment=stores.upstream().aws, upstream={"stall": "2s"})
        opened = service.opened("acme", "tiny")
        token = service.token("acme", "tiny").json["token"]
        assert fetch(service, opened["origin"], target_of(opened)).status == 200
    answer = fetch(service, opened["origin"], target_of(opened))
    assert (answer.status, answer.code) == (503, "ServiceUnavailable")
    assert int(answer.headers["retry-after"]) > 0
    answer = service.resolve(token, "bdn:weights/tiny")
    assert (answer.status, answer.json["error"]["reason"]) == (503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) > 0
    for text in (answer.body.decode(), str(opened), service.err, service.out):
        assert "hidden-key" not in text
        assert "AKIDEXAMPLE" not in text
    assert service.ask("GET", "/healthz").status == 200


def test_clients_that_are_none(serve: Serve, mirror: str) -> None:
    """Whatever comes, each connection ends, and the others are served."""
    service = serve(mirror=mirror)
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(10_000)) + b"\r\n",
        b"POST /v1/volumes/token HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/volumes/token HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1 HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: h2c\r\nhttp2-settings: x\r\n\r\n",
        b"PUT /bdnfs/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n" + b"x" * 2_000_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100,
    ):
        with connected(service) as client, contextlib.suppress(ConnectionError):
            client.sendall(sent)
            try:
                client.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:  # it has ended the connection already
                    raise
            while client.recv(1 << 16):
                pass
    assert service.ask("GET", "/healthz").status == 200
    until(lambda: "was not HTTP" in service.err, "the line that says so")


def test_more_connections_than_it_takes(serve: Serve, mirror: str) -> None:
    """With 200 files it takes 72: whoever comes then waits until one of those has gone, or has sent nothing."""
    service = serve(mirror=mirror, files_max=200)
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(connected(service)) for _ in range(72)]
        waiting = stack.enter_context(connected(service))
        waiting.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        first[0].sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert first[0].recv(12) == b"HTTP/1.1 200"
        assert waiting.recv(12) == b"HTTP/1.1 200"
    assert service.ask("GET", "/healthz").status == 200


@pytest.mark.long  # as long as an idle connection is kept
def test_a_request_that_never_comes_is_not_waited_for(serve: Serve, mirror: str) -> None:
    service = serve(mirror=mirror)
    with connected(service) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nx: ")
        assert client.recv(1) == b""  # the socket's own timeout fails the test


@pytest.mark.long  # as long as a connection may stand still
def test_a_client_that_takes_nothing_is_let_go(serve: Serve, mirror: str) -> None:
    service = serve(mirror=mirror)
    (target, origin, size) = largest(service, mirror)
    with connected(service, buffer_bytes=65536) as client:
        client.sendall(request("GET", target, signed(service, origin, target)))
        until(lambda: f"GET {target} 200" in service.err, "the service to give up")
        came = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(1 << 20):
                came += len(piece)
    assert came < size
