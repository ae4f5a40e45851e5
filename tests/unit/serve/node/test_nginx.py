"""The config that a node writes, by a real nginx before an app that says what it is told to."""

import http.client
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from bdnfs.core.errors import SpecError
from bdnfs.serve.node.front import open_front
from bdnfs.serve.node.http import Answer, Request
from bdnfs.serve.node.nginx import config_text, find_nginx
from bdnfs.spec.cluster import ClusterConfig, TlsConfig
from tests.contract.servers import free_port

pytestmark = pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed")


def serve(
    tmp_path: Path,
    answers: Callable[[Request], Awaitable[Answer]],
    use: Callable[[http.client.HTTPConnection], None],
) -> None:
    """Call use with a connection to nginx before an app that answers so."""

    def unexpected(error: BaseException) -> None:
        raise AssertionError from error

    async def main() -> None:
        directory, config = (
            tmp_path / "a place with 'quotes', $and {braces};" / "node",
            ClusterConfig(port=free_port()),
        )
        directory.mkdir(parents=True)
        (directory.parent / "share").mkdir()
        warnings: list[str] = []
        front = await open_front(config, None, directory, 64, warnings.append, nginx=True)
        assert front.nginx is not None, warnings
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.run, answers, 64, trio.sleep_forever, unexpected)
            connection = http.client.HTTPConnection("127.0.0.1", config.port, timeout=30)
            try:
                await trio.to_thread.run_sync(use, connection)
            finally:
                connection.close()
                await front.end(trio.sleep_forever)
                nursery.cancel_scope.cancel()

    trio.run(main)


def redirect(location: str) -> Answer:
    headers = [(b"x-accel-redirect", location.encode()), (b"content-length", b"0"), (b"bdnfs-tier", b"share")]
    return Answer(200, headers, b"")


def test_what_is_gone_when_nginx_looks_is_asked_for_once_more(tmp_path: Path) -> None:
    asked: list[Request] = []

    async def answers(request: Request) -> Answer:
        asked.append(request)
        if len(asked) == 1:
            return redirect("/.share/default/weights/ab/abcd")
        return Answer(200, [(b"content-length", b"5"), (b"bdnfs-tier", b"mirror")], b"hello")

    def use(connection: http.client.HTTPConnection) -> None:
        connection.request(
            "GET", "/v1/chunks/x?held=1", headers={"Authorization": "Bearer x", "Range": "bytes=0-4"}
        )
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"hello")
        assert response.headers["Bdnfs-Tier"] == "mirror"

    serve(tmp_path, answers, use)
    assert len(asked) == 2
    first, second = asked
    assert (first.path, first.query, first.method) == (second.path, second.query, second.method)
    assert dict(first.headers)[b"authorization"] == dict(second.headers)[b"authorization"] == b"Bearer x"


def test_of_a_blob_only_the_range_is_sent_also_the_second_time(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"0123456789")
    asked: list[Request] = []
    with (tmp_path / "blob").open("rb") as blob:

        async def answers(request: Request) -> Answer:
            asked.append(request)
            return redirect("/.blobs/999999" if len(asked) == 1 else f"/.blobs/{blob.fileno()}")

        def use(connection: http.client.HTTPConnection) -> None:
            for _ in range(2):
                connection.request("GET", "/v1/chunks/x", headers={"Range": "bytes=2-4"})
                response = connection.getresponse()
                assert (response.status, response.read()) == (206, b"234")
                assert response.headers["Content-Range"] == "bytes 2-4/10"

        serve(tmp_path, answers, use)
    assert len(asked) == 3


def test_what_stays_gone_is_not_asked_for_for_ever(tmp_path: Path) -> None:
    asked: list[Request] = []

    async def answers(request: Request) -> Answer:
        asked.append(request)
        return redirect("/.share/default/weights/ab/abcd")

    def use(connection: http.client.HTTPConnection) -> None:
        connection.request("GET", "/v1/chunks/x")
        response = connection.getresponse()
        assert response.status in (404, 500)
        response.read()

    serve(tmp_path, answers, use)
    assert len(asked) <= 2


def test_who_asks_can_neither_forge_its_address_nor_get_a_part_of_a_chunk(tmp_path: Path) -> None:
    asked: list[Request] = []
    (tmp_path / "chunk").write_bytes(b"0123456789")

    async def answers(request: Request) -> Answer:
        asked.append(request)
        return redirect("/.share/chunk")

    def use(connection: http.client.HTTPConnection) -> None:
        (place,) = tmp_path.glob("*/share")
        os.link(tmp_path / "chunk", place / "chunk")
        forged = {
            "Bdnfs-Client": "10.0.0.1",
            "Bdnfs-Server": "10.0.0.1",
            "X-Accel-Redirect": "/etc",
            "Range": "bytes=2-3",
        }
        connection.request("GET", "/", headers=forged)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"0123456789")
        assert "x-accel-redirect" not in response.headers

    serve(tmp_path, answers, use)
    named = [value for name, value in asked[0].headers if name in (b"bdnfs-client", b"bdnfs-server")]
    assert named == [b"127.0.0.1", b"127.0.0.1"]


def test_paths_that_nginx_can_not_be_told_are_refused() -> None:
    with pytest.raises(SpecError, match="nginx"):
        config_text(["127.0.0.1:1"], TlsConfig("/a/$cert", "/a/key", "/a/ca"), 1, 10)
    assert r'ssl_certificate "/a \"b\"/c";' in config_text(
        ["[::1]:1"], TlsConfig('/a "b"/c', "/k", "/ca"), 1, 10
    )
