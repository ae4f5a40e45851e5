"""How the service ends, and what outlives it."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.node import until
from tests.serve.served import KEYS, Served
from tests.serve.signing import fetch, signed
from tests.serve.wire import connected, largest, refuses, request, target_of

Serve = Callable[..., Served]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ends_when_told(serve: Serve, mirror: str, number: signal.Signals) -> None:
    service = serve("--quiet", mirror=mirror)
    with connected(service) as idle, connected(service) as halfway:
        halfway.sendall(b"GET /healthz HTT")
        assert service.ask("GET", "/healthz").status == 200
        service.process.send_signal(number)
        assert service.ends(0) == ""
        assert idle.recv(1) == b""


def test_lets_what_is_under_way_end(serve: Serve, mirror: str) -> None:
    """A client that reads slowly gets the whole object; another Ctrl-C would cut it short."""
    service = serve(mirror=mirror)
    (target, origin, size) = largest(service, mirror)
    with connected(service, buffer_bytes=65536) as client:
        head = signed(service, origin, target)
        client.sendall(request("GET", target, head))
        first = client.recv(1000)
        service.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(service), "it to take no more")
        rest = first + b"".join(iter(lambda: client.recv(1 << 20), b""))
        assert len(rest.partition(b"\r\n\r\n")[2]) == size
    service.ends(0)


def test_ends_although_a_client_reads_nothing(serve: Serve, mirror: str) -> None:
    service = serve(mirror=mirror)
    (target, origin, _) = largest(service, mirror)
    with connected(service, buffer_bytes=65536) as client:
        client.sendall(request("GET", target, signed(service, origin, target)))
        assert client.recv(1000)
        service.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(service), "it to take no more")
        service.process.send_signal(signal.SIGTERM)
        service.ends(0)


def test_another_service_with_the_same_key_file_goes_on(serve: Serve, mirror: str, tmp_path: Path) -> None:
    section = {"keys": {"default": "acme_key"}, "key_file": str(tmp_path / "key")}
    KEYS.setdefault("default", KEYS["acme"])
    first = serve(mirror=mirror, serve=section)
    token = first.token("default", "tiny").json["token"]
    opened = first.resolve(token, "bdn:weights/tiny").json
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    first.process.send_signal(signal.SIGTERM)
    first.ends(0)
    second = serve(mirror=mirror, serve=section)
    assert fetch(second, opened["origin"], target_of(opened)).status == 200
    assert second.resolve(token, "bdn:weights/tiny").status == 200
    third = serve(mirror=mirror, serve={"keys": {"default": "acme_key"}})
    assert fetch(third, opened["origin"], target_of(opened)).code == "InvalidToken"
    assert third.resolve(token, "bdn:weights/tiny").status == 401
    assert (tmp_path / "key").read_text().strip() not in first.err + first.out + second.err + second.out
