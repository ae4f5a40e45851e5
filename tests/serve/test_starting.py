"""When the service starts, and when it doesn't; and TLS."""

import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
from baseten.bdn.volumes import VolumeClient
from baseten.client import ManagementClient

from bdnfs.cli.serve import serve_volumes
from bdnfs.core.errors import CredentialsError, SpecError
from bdnfs.session.serving import serve_mirror
from bdnfs.spec.config import parse_config
from bdnfs.spec.serve import ServeConfig
from tests.commands.node import until
from tests.serve.served import FILES, KEYS, Served
from tests.serve.wire import connected

Serve = Callable[..., Served]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"listen": "7890"}, "expected HOST:PORT"),
        ({"listen": "127.0.0.1:99999"}, "expected HOST:PORT"),
        ({"listen": "::1:80"}, "expected HOST:PORT"),
        ({"listen": ":80"}, "expected HOST:PORT"),
        ({"listen": 80}, "expected text"),
        ({"keys": ["acme"]}, "expected a secret's name for each tenant"),
        ({"keys": {"a/b": "acme_key"}}, "can't name a tenant"),
        ({"keys": {"acme": "../key"}}, "can't name a secret"),
        ({"keys": {"acme": "key", "rival": "key"}}, "one secret for several tenants"),
        ({"advertise": "volumes.example"}, "expected a URL"),
        ({"advertise": "https://volumes.example/below"}, "without a path"),
        ({"advertise": "https://a:b@volumes.example"}, "expected a URL"),
        ({"credentials_for": "0s"}, "is not from 1 s"),
        ({"credentials_for": "13h"}, "is not from 1 s"),
        ({"credentials_for": []}, "expected a duration"),
        ({"key_file": "relative"}, "is relative"),
        ({"tls": {"cert": "/nowhere"}}, "TLS needs both"),
        ({"tls": {"cert": "here", "key": "/nowhere"}}, "is relative"),
        ({"port": 1}, "unknown key"),
        ("127.0.0.1:80", "expected a mapping"),
    ],
)
def test_a_config_that_is_none(section: object, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        parse_config({"serve": section}, "node.yaml", {"HOME": "/home/me"})
    assert str(caught.value).startswith("node.yaml: serve")


def test_a_config() -> None:
    section = {
        "listen": "[::1]:0",
        "tls": {"cert": "~/cert", "key": "/key"},
        "advertise": "https://V.example:8",
    }
    found = parse_config({"serve": section}, None, {"HOME": "/home/me"}).serve
    assert (found.host, found.port, found.cert, found.key) == ("::1", 0, "/home/me/cert", "/key")
    assert found.advertise == "https://v.example:8"
    assert parse_config({}, None, {"HOME": "/"}).serve == ServeConfig()


def attempt(mirror: str | None, section: dict[str, Any], directory: Path) -> None:
    """Start the service in this process; it has to refuse."""
    (directory / "secrets").mkdir(exist_ok=True)
    data = {"mirror": mirror, "serve": section, "secrets": {"directory": str(directory / "secrets")}}
    config = parse_config(data, None, {"HOME": str(directory)})
    said: list[str] = []
    serve_mirror(config, {}, said.append, said.append, said.append)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "*:0", "10.0.0.1:80", "host.example:80"])
def test_does_not_start_open_to_everybody(mirror: str, listen: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="anybody could read the mirror"):
        attempt(mirror, {"listen": listen}, tmp_path)


def test_does_not_start_without_what_it_needs(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="names no mirror"):
        attempt(None, {}, tmp_path)
    with pytest.raises(CredentialsError, match="bdnfs secret set acme_key"):
        attempt(mirror, {"keys": {"acme": "acme_key"}}, tmp_path)
    for name in ("one", "two"):
        (tmp_path / "secrets" / name).write_text("the same")
    with pytest.raises(CredentialsError, match="acme, rival have the same API key"):
        attempt(mirror, {"keys": {"acme": "one", "rival": "two"}}, tmp_path)
    with pytest.raises(SpecError, match="can't use the certificate /nowhere"):
        attempt(mirror, {"tls": {"cert": "/nowhere", "key": "/nowhere"}}, tmp_path)
    shared = tmp_path / "shared.key"
    shared.write_text("x" * 64)
    shared.chmod(0o644)
    with pytest.raises(CredentialsError, match="can be read by others"):
        attempt(mirror, {"key_file": str(shared)}, tmp_path)
    shared.write_text("short")
    shared.chmod(0o600)
    with pytest.raises(CredentialsError, match="holds 5 characters"):
        attempt(mirror, {"key_file": str(shared)}, tmp_path)
    with pytest.raises(CredentialsError, match="can't be used"):
        attempt(mirror, {"key_file": str(tmp_path / "nowhere" / "key")}, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SpecError, match="Address already in use"):
            attempt(mirror, {"listen": f"127.0.0.1:{port}"}, tmp_path)


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    for name in ("bdnfs.session.serving", "bdnfs.serve.server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "hypercorn.config", None)
    with pytest.raises(SpecError, match=r"pip install 'bdnfs\[serve\]'"):
        serve_volumes.main([], standalone_mode=False)


def test_the_command_refuses(serve: Serve, mirror: str) -> None:
    assert "anybody could read the mirror" in serve("--listen", "0.0.0.0:0", mirror=mirror).ends(2)


def test_says_that_it_asks_for_no_key(serve: Serve, mirror: str) -> None:
    service = serve(mirror=mirror)
    assert service.url
    until(lambda: "asks for no API key" in service.out, "the warning")
    # A page in a browser of this machine may call a name of its own 127.0.0.1.
    answer = service.ask("POST", "/v1/volumes/token", {"host": "rebound.example"}, b"{}")
    assert answer.status == 403


def test_a_mirror_that_is_not_there_is_told(serve: Serve, tmp_path: Path) -> None:
    service = serve(mirror=str(tmp_path / "nowhere"))
    assert service.url
    until(lambda: "there is no such directory" in service.err, "the warning")


def test_all_addresses_with_keys(serve: Serve, mirror: str) -> None:
    section = {"keys": {"acme": "acme_key"}, "advertise": "http://volumes.example"}
    service = serve("--listen", "0.0.0.0:0", mirror=mirror, serve=section)
    port = urlsplit(service.url).port
    until(lambda: "plain http" in service.err, "the warning")
    answer = service.token("acme", "tiny").json
    assert answer["bdn_endpoint"] == "http://volumes.example"
    with socket.create_connection(("127.0.0.1", port or 0), 60) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert client.recv(15) == b"HTTP/1.1 200 \r\n"[:15]


def test_tls(serve: Serve, mirror: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    section = {"tls": {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}}
    service = serve(mirror=mirror, serve=section)
    assert service.url.startswith("https://")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with connected(service) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        while client.recv(1000):
            pass
    with (
        httpx.Client(verify=context) as http,
        httpx.Client(
            verify=context, base_url=service.url, headers={"authorization": f"Bearer {KEYS['acme']}"}
        ) as management,
        VolumeClient(
            api_key="any",
            bdn_endpoint_override=service.url,
            http_client_override=http,
            management_client_override=ManagementClient(api_key="any", http_client_override=management),
        ) as volumes,
    ):
        volumes.pull("bdn:weights/tiny", tmp_path / "pulled")
    assert (tmp_path / "pulled/model.safetensors").read_bytes() == FILES["model.safetensors"]
