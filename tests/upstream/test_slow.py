"""Servers that keep a client busy with almost nothing: each wait ends by the stall deadline or the floor under it."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bdnfs.core.errors import UpstreamError
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import UpstreamConfig
from bdnfs.spec.source import parse_source
from tests.contract.raw import RawServer
from tests.upstream import test_redirects as ways
from tests.upstream.fronts import assert_clear
from tests.upstream.listings import answer

STALL_S = 0.3
# A busy machine may take many times the deadline; a server without an end takes for ever.
LIMIT_S = 40.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n"


def silent(server: RawServer) -> Iterator[bytes]:
    server.closing.wait()
    yield b""


def head_byte_by_byte(server: RawServer) -> Iterator[bytes]:
    yield OK + b"X-Slow: "
    while not server.closing.wait(0.02):
        yield b"x"


def head_line_by_line(server: RawServer) -> Iterator[bytes]:
    yield OK
    while not server.closing.wait(0.02):
        yield b"X-Slow: x\r\n"


def status_byte_by_byte(server: RawServer) -> Iterator[bytes]:
    for byte in b"HTTP/1.1 200 " + b"O" * 10_000:
        yield bytes((byte,))
        if server.closing.wait(0.02):
            return


def interim_answers_without_end(server: RawServer) -> Iterator[bytes]:
    while not server.closing.wait(0.001):
        yield b"HTTP/1.1 100 Continue\r\n\r\n" * 100


def early_hints_without_end(server: RawServer) -> Iterator[bytes]:
    while not server.closing.wait(0.001):
        yield b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 100


def headers_without_end(server: RawServer) -> Iterator[bytes]:
    yield OK
    while not server.closing.wait(0.001):
        yield b"X-Many: x\r\n" * 100


TRICKS: list[Callable[[RawServer], Iterator[bytes]]] = [
    silent,
    status_byte_by_byte,
    head_byte_by_byte,
    head_line_by_line,
    headers_without_end,
    interim_answers_without_end,
    early_hints_without_end,
]


def ends_in_time(way: Callable[[str], None], said: Callable[[RawServer, str], Iterable[bytes]]) -> None:
    """Go this way to a server that answers so; fail unless a clear error comes in time."""

    def answered(head: str) -> Iterable[bytes]:
        return said(server, head)

    with RawServer(answered) as server:
        began_s = time.monotonic()
        with pytest.raises(UpstreamError) as caught:
            way(server.url)
        assert time.monotonic() - began_s < LIMIT_S, way
        assert_clear(caught.value)


@pytest.mark.parametrize("trick", TRICKS)
def test_a_server_that_never_comes_to_an_end_is_left_in_time_by_all_who_ask(
    trick: Callable[[RawServer], Iterator[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "STALL_S", STALL_S)
    with ThreadPoolExecutor(len(ways.WAYS)) as threads:
        list(threads.map(lambda way: ends_in_time(way, lambda server, _: trick(server)), ways.WAYS))


# ---- bodies: the head is as it should be ---------------------------------------------------------


def body_byte_by_byte(server: RawServer, head: bytes, body: bytes) -> Iterator[bytes]:
    yield head
    for byte in body:
        yield bytes((byte,))
        if server.closing.wait(0.05):
            return


def body_in_small_chunks(server: RawServer, head: bytes, body: bytes) -> Iterator[bytes]:
    yield chunked(head)
    for byte in body:
        yield b"1\r\n%c\r\n" % byte
        if server.closing.wait(0.05):
            return


def trailers_without_end(server: RawServer, head: bytes, body: bytes) -> Iterator[bytes]:
    yield chunked(head) + b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    while not server.closing.wait(0.001):
        yield b"X-Many: x\r\n" * 100


def half_a_body(server: RawServer, head: bytes, body: bytes) -> Iterator[bytes]:
    yield head + body[: len(body) // 2]
    server.closing.wait()


def chunked(head: bytes) -> bytes:
    return re.sub(rb"Content-Length: [0-9]+", b"Transfer-Encoding: chunked", head)


def lists_a_bucket(url: str) -> None:
    upstream = UpstreamConfig(aws={"AWS_ENDPOINT_URL": url, **ways.AWS}, stall_s=STALL_S)
    list(open_origin(parse_source("s3://bucket/prefix"), upstream).list(None))


BODIES = (body_byte_by_byte, body_in_small_chunks, trailers_without_end, half_a_body)
WITH_BODIES = (
    ways.asks_the_question,
    ways.resolves,
    ways.lists_a_hub,
    ways.reads_from_a_hub,
    ways.reads_a_file,
    ways.reads_an_object,
)


@pytest.mark.parametrize("trick", BODIES)
def test_a_body_that_never_comes_to_an_end_is_left_in_time_by_all_who_read(
    trick: Callable[[RawServer, bytes, bytes], Iterator[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "STALL_S", STALL_S)
    monkeypatch.setattr(ways, "BODY", b"b" * 1000)
    listing = b"<ListBucketResult><IsTruncated>false</IsTruncated>%s" % (b" " * 1000)

    def said(server: RawServer, head: str) -> Iterable[bytes]:
        first, body = ways.anything(head)
        return [first, body] if head.startswith("HEAD") else trick(server, first, body)

    def said_by_a_bucket(server: RawServer, head: str) -> Iterable[bytes]:
        if head.startswith("HEAD"):
            return answer(b"", status="404 Not Found")
        first, body = answer(listing, ["Content-Type: application/xml"])
        return trick(server, first, body)

    with ThreadPoolExecutor(len(WITH_BODIES) + 1) as threads:
        bucket = threads.submit(ends_in_time, lists_a_bucket, said_by_a_bucket)
        list(threads.map(lambda way: ends_in_time(way, said), WITH_BODIES))
        bucket.result()


def test_an_answer_after_early_hints_is_the_answer_to_this_request() -> None:
    def said(head: str) -> list[bytes]:
        return [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", *ways.anything(head)]

    with RawServer(said) as server:
        ways.reads_a_file(server.url)
        ways.lists_a_hub(server.url)
