"""What the Hub's and the https origin make of servers that fail, lie or redirect."""

import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from bdnfs.core.errors import (
    BdnfsError,
    ChangedError,
    CredentialsError,
    NotFoundError,
    UnavailableError,
    UpstreamError,
)
from bdnfs.manifest.model import FileEntry
from bdnfs.origins.base import Origin
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import Secret, UpstreamConfig
from bdnfs.spec.source import parse_source
from benchmarks.servers.hub import HubServer
from tests.contract.raw import RawServer

TOKEN = "hf_VerySecretTokenValue0123456789"
MODEL = bytes(range(256)) * 4096
FILES = {"config.json": b'{"a": 1}' * 100, "model.safetensors": MODEL}
STALL_S = 0.4
WEB = ("hub", "https")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path) as server:
        server.token(TOKEN)
        server.commit("org/model", FILES)
        yield server


class Reader:
    """One file read by one kind of origin from one server."""

    def __init__(self, kind: str, url: str, path: str = "model.safetensors", stall_s: float = 10.0) -> None:
        self.kind = kind
        upstream = UpstreamConfig(hf_endpoint=url, hf_token=Secret(TOKEN), stall_s=stall_s)
        text = "hf://org/model" if kind == "hub" else f"{url}/org/model/resolve/main/{path}"
        self.origin: Origin = open_origin(parse_source(text), upstream, Secret(TOKEN))
        self.revision = self.origin.resolve(None)
        entries = {entry.path: entry for entry in self.origin.list(self.revision)}
        self.entry: FileEntry = entries[path]

    def read(self, start: int = 1000, stop: int = 301_000) -> bytes:
        into = bytearray(stop - start)
        self.origin.read(self.revision, self.entry, start, memoryview(into))
        return bytes(into)

    def fails(self, expected: type[BdnfsError], start: int = 1000, stop: int = 301_000) -> BdnfsError:
        """Read, see it fail with exactly the class expected and without a secret in its text; return it."""
        with pytest.raises(BdnfsError) as caught:
            self.read(start, stop)
        assert type(caught.value) is expected, caught.value
        assert_no_secret(caught.value)
        return caught.value


def assert_no_secret(error: BaseException) -> None:
    said = "".join(traceback.format_exception(error))
    for secret in (TOKEN, "Signature=", "Expires=", "Key-Pair-Id="):
        assert secret not in said


@pytest.fixture(params=WEB)
def reader(request: pytest.FixtureRequest, hub: HubServer) -> Iterator[Reader]:
    found = Reader(request.param, hub.url, stall_s=STALL_S)
    yield found
    found.origin.close()


# ---- statuses ------------------------------------------------------------------------------------

STATUSES: list[tuple[int, type[BdnfsError]]] = [
    (401, CredentialsError),
    (403, CredentialsError),
    (404, NotFoundError),
    (410, NotFoundError),
    (400, UpstreamError),
    (408, UnavailableError),
    (429, UnavailableError),
    (500, UnavailableError),
    (502, UnavailableError),
    (503, UnavailableError),
    (504, UnavailableError),
]


@pytest.mark.parametrize(("status", "expected"), STATUSES)
@pytest.mark.parametrize("place", ["/resolve/", "/cdn/"])
def test_a_status_is_one_class_wherever_it_comes_from(
    hub: HubServer, reader: Reader, place: str, status: int, expected: type[BdnfsError]
) -> None:
    hub.expire_links()
    hub.faults.add(match=place, status=status, times=None)
    reader.fails(expected)
    hub.faults.clear()
    assert reader.read() == MODEL[1000:301_000]


def test_retry_after_is_handed_up(hub: HubServer, reader: Reader) -> None:
    hub.faults.add(match="/cdn/", status=429, headers={"Retry-After": "17"})
    error = reader.fails(UnavailableError)
    assert isinstance(error, UnavailableError)
    assert error.retry_after_s == 17.0
    date = datetime.now(UTC) + timedelta(seconds=120)
    hub.faults.add(match="/cdn/", status=503, headers={"Retry-After": format_datetime(date, usegmt=True)})
    error = reader.fails(UnavailableError)
    assert isinstance(error, UnavailableError)
    assert error.retry_after_s == pytest.approx(120, abs=5)
    hub.faults.add(match="/cdn/", status=503, headers={"Retry-After": "soon"})
    error = reader.fails(UnavailableError)
    assert isinstance(error, UnavailableError)
    assert error.retry_after_s is None


# ---- streams that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"truncate_at": 0},
        {"truncate_at": 1},
        {"truncate_at": 299_999},
        {"reset": True},
        {"stall": True},
        {"slow_bytes_per_s": 4000},
        {"delay_s": 5 * STALL_S},
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["/resolve/", "/cdn/"])
def test_a_broken_stream_is_unavailable_and_ends_in_time(
    hub: HubServer, reader: Reader, place: str, fault: dict[str, object]
) -> None:
    if place == "/resolve/":
        # Small files are answered there, by fewer bytes than a moment of the other trickle.
        reader = Reader(reader.kind, hub.url, "config.json", STALL_S)
        small: dict[str, object] = {"truncate_at": 100, "slow_bytes_per_s": 500}
        fault = {name: small.get(name, value) for name, value in fault.items()}
    # A reset of a kept connection says nothing yet: it is asked for once more on a fresh one.
    hub.faults.add(match=place, **fault, times=None)
    began_s = time.monotonic()
    stop = min(301_000, reader.entry.size)
    reader.fails(UnavailableError, 0, stop)
    assert time.monotonic() - began_s < 10 * STALL_S
    assert hub.faults.hits == 1 or "reset" in fault
    hub.faults.clear()
    assert reader.read(0, stop) == FILES[reader.entry.path][:stop]


def test_a_kept_connection_that_the_server_ended_is_no_failure(hub: HubServer, reader: Reader) -> None:
    reader.read()
    hub.faults.add(match="/cdn/", reset=True)
    assert reader.read() == MODEL[1000:301_000]
    assert hub.faults.hits == 1


def test_a_slow_but_steady_stream_is_read(hub: HubServer) -> None:
    reader = Reader("hub", hub.url, stall_s=1.0)
    hub.faults.add(match="/cdn/", slow_bytes_per_s=100_000)
    assert reader.read(0, 150_000) == MODEL[:150_000]
    assert hub.faults.hits == 1


def test_a_reader_that_pauses_is_not_taken_for_a_slow_server(hub: HubServer) -> None:
    reader = Reader("hub", hub.url, stall_s=STALL_S)
    got = bytearray()
    for piece in reader.origin.stream(reader.revision, reader.entry):
        got += piece
        if len(got) == len(piece):
            pause(1.5 * STALL_S)
    assert got == MODEL


def pause(seconds: float) -> None:
    """Let the wall clock move: the pause itself is what is tested."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sum(range(1000))


def test_headers_that_trickle_end_in_time() -> None:
    def trickle(_: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nX: "
        while not server.closing.wait(0.05):
            yield b"x"

    with RawServer(trickle) as server:
        origin = open_origin(parse_source(f"{server.url}/file"), UpstreamConfig(stall_s=STALL_S))
        began_s = time.monotonic()
        with pytest.raises(UnavailableError):
            list(origin.list(None))
        assert time.monotonic() - began_s < 10 * STALL_S
        origin.close()


# ---- answers that lie ----------------------------------------------------------------------------

ETAG = {"ETag": '"v1"'}


def lying(head: str, lie: str) -> list[bytes]:
    """Answer the lookup of a 1000-byte file well, and a read of [100, 200) as lie says."""
    if "bytes=0-0" in head:
        return [
            b'HTTP/1.1 206 Partial Content\r\nETag: "v1"\r\nContent-Range: bytes 0-0/1000\r\n'
            b"Content-Length: 1\r\nConnection: close\r\n\r\nx"
        ]
    return [lie.replace("\n", "\r\n").encode()]


BODY = "b" * 100
LIES: list[tuple[str, type[BdnfsError]]] = [
    ('206 A\nETag: "v1"\nContent-Range: bytes 101-200/1000\nContent-Length: 100', UpstreamError),
    ('206 A\nETag: "v1"\nContent-Range: bytes 100-198/1000\nContent-Length: 99', UpstreamError),
    ('206 A\nETag: "v1"\nContent-Range: bytes 100-199/1000\nContent-Length: 101', UpstreamError),
    ('206 A\nETag: "v1"\nContent-Range: bytes 100-199/1000\nContent-Length: 99', UpstreamError),
    ('206 A\nETag: "v1"\nContent-Range: bytes 0-99/1000\nContent-Length: 100', UpstreamError),
    ('206 A\nETag: "v1"\nContent-Length: 100', UpstreamError),
    ('206 A\nETag: "v1"\nContent-Range: lines 100-199/1000\nContent-Length: 100', UpstreamError),
    ('206 A\nETag: "v1"\nContent-Type: multipart/byteranges; boundary=x\nContent-Length: 100', UpstreamError),
    (
        '206 A\nETag: "v1"\nContent-Encoding: gzip\nContent-Range: bytes 100-199/1000\nContent-Length: 100',
        UpstreamError,
    ),
    ('200 OK\nETag: "v1"\nContent-Length: 1000', UpstreamError),
    ('200 OK\nETag: "v1"', UpstreamError),
    ('204 No Content\nETag: "v1"', UpstreamError),
    ('416 No\nETag: "v1"\nContent-Range: bytes */1000\nContent-Length: 0', UpstreamError),
    ('416 No\nETag: "v1"\nContent-Range: bytes */50\nContent-Length: 0', ChangedError),
    ('206 A\nETag: "v1"\nContent-Range: bytes 100-199/1001\nContent-Length: 100', ChangedError),
    ('206 A\nETag: "v2"\nContent-Range: bytes 100-199/1000\nContent-Length: 100', ChangedError),
    ('206 A\nETag: W/"v1"\nContent-Range: bytes 100-199/1000\nContent-Length: 100', ChangedError),
    ("206 A\nContent-Range: bytes 100-199/1000\nContent-Length: 100", ChangedError),
    ('200 OK\nETag: "v2"\nContent-Length: 1000', ChangedError),
]


@pytest.mark.parametrize(("lie", "expected"), LIES)
def test_a_lie_is_never_taken_for_the_right_bytes(lie: str, expected: type[BdnfsError]) -> None:
    with RawServer(lambda head: lying(head, f"HTTP/1.1 {lie}\nConnection: close\n\n{BODY}")) as server:
        origin = open_origin(parse_source(f"{server.url}/file.bin"), UpstreamConfig(stall_s=STALL_S))
        (entry,) = origin.list(None)
        assert (entry.path, entry.size, entry.ranged) == ("file.bin", 1000, True)
        with pytest.raises(BdnfsError) as caught:
            origin.read(None, entry, 100, memoryview(bytearray(100)))
        assert type(caught.value) is expected, caught.value
        origin.close()


def test_a_body_without_length_has_to_end_where_it_should() -> None:
    head = 'HTTP/1.1 206 A\nETag: "v1"\nContent-Range: bytes 100-199/1000\nConnection: close\n'
    answers = iter((f"{head}\n{BODY}", f"{head}\n{BODY}b", f"{head}\n{BODY[1:]}"))
    with RawServer(lambda head: lying(head, "" if "bytes=0-0" in head else next(answers))) as server:
        origin = open_origin(parse_source(f"{server.url}/file.bin"), UpstreamConfig(stall_s=STALL_S))
        (entry,) = origin.list(None)
        into = bytearray(100)
        origin.read(None, entry, 100, memoryview(into))
        assert into == BODY.encode()
        with pytest.raises(UpstreamError, match="more than"):
            origin.read(None, entry, 100, memoryview(into))
        with pytest.raises(UnavailableError, match="99 of 100"):
            origin.read(None, entry, 100, memoryview(into))
        origin.close()


def test_chunked_bodies_are_read_and_their_breaks_noticed() -> None:
    head = 'HTTP/1.1 206 A\nETag: "v1"\nContent-Range: bytes 100-199/1000\nTransfer-Encoding: chunked\n\n'
    answers = iter(
        (f"{head}40\n{BODY[:64]}\n24\n{BODY[64:]}\n0\n\n", f"{head}40\n{BODY[:64]}\n24\n{BODY[70:]}")
    )
    with RawServer(lambda head: lying(head, "" if "bytes=0-0" in head else next(answers))) as server:
        origin = open_origin(parse_source(f"{server.url}/file.bin"), UpstreamConfig(stall_s=STALL_S))
        (entry,) = origin.list(None)
        into = bytearray(100)
        origin.read(None, entry, 100, memoryview(into))
        assert into == BODY.encode()
        with pytest.raises(UnavailableError):
            origin.read(None, entry, 100, memoryview(into))
        origin.close()


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        ('200 OK\nETag: "v1"\nContent-Length: 999', ChangedError),
        ('200 OK\nETag: "v2"\nContent-Length: 1000', ChangedError),
        ('200 OK\nETag: "v1"\nConnection: close', UnavailableError),
        ('200 OK\nETag: "v1"\nContent-Length: 1000\nContent-Encoding: gzip', UpstreamError),
        ('200 OK\nETag: "v1"\nContent-Length: 1000', UnavailableError),
        ('206 A\nETag: "v1"\nContent-Range: bytes 0-999/1000\nContent-Length: 1000', UpstreamError),
    ],
)
def test_a_stream_that_lies_is_refused(whole: str, expected: type[BdnfsError]) -> None:
    """The body is 999 bytes of the 1000 that were listed."""

    def answer(head: str) -> list[bytes]:
        found = (
            'HTTP/1.1 200 OK\nETag: "v1"\nContent-Length: 1000'
            if "bytes=0-0" in head
            else f"HTTP/1.1 {whole}"
        )
        return [f"{found}\n\n{'b' * 999}".replace("\n", "\r\n").encode()]

    with RawServer(answer) as server:
        origin = open_origin(parse_source(f"{server.url}/file.bin"), UpstreamConfig(stall_s=STALL_S))
        (entry,) = origin.list(None)
        assert not entry.ranged
        with pytest.raises(BdnfsError) as caught:
            for _ in origin.stream(None, entry):
                pass
        assert type(caught.value) is expected, caught.value
        origin.close()


@pytest.mark.parametrize(
    ("head", "size", "ranged"),
    [
        ('206 A\nETag: "v"\nContent-Range: bytes 0-0/77\nContent-Length: 1\n\nx', 77, True),
        (
            "206 A\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\nContent-Range: bytes "
            "0-0/77\nContent-Length: 1\n\nx",
            77,
            True,
        ),
        ("206 A\nContent-Range: bytes 0-0/77\nContent-Length: 1\n\nx", 77, False),
        ('206 A\nETag: W/"v"\nContent-Range: bytes 0-0/77\nContent-Length: 1\n\nx', 77, False),
        ('200 OK\nETag: "v"\nContent-Length: 77\nAccept-Ranges: bytes\n\n', 77, False),
        ('416 No\nETag: "v"\nContent-Range: bytes */0\nContent-Length: 0\n\n', 0, True),
    ],
)
def test_ranges_are_believed_only_after_a_real_one(head: str, size: int, ranged: bool) -> None:
    with RawServer(lambda _: [f"HTTP/1.1 {head}".replace("\n", "\r\n").encode()]) as server:
        origin = open_origin(parse_source(f"{server.url}/a%20b%2525.bin"), UpstreamConfig(stall_s=STALL_S))
        (entry,) = origin.list(None)
        assert (entry.path, entry.size, entry.ranged) == ("a b%25.bin", size, ranged)
        origin.close()


def test_a_server_that_does_not_say_the_size_is_refused() -> None:
    with RawServer(lambda _: [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"]) as server:
        origin = open_origin(parse_source(f"{server.url}/file.bin"), UpstreamConfig(stall_s=STALL_S))
        with pytest.raises(UpstreamError, match="Content-Length"):
            list(origin.list(None))
        origin.close()


# ---- redirects -----------------------------------------------------------------------------------


def test_the_token_stays_at_home(hub: HubServer) -> None:
    for kind in WEB:
        reader = Reader(kind, hub.url)
        assert reader.read() == MODEL[1000:301_000]
        assert reader.read() == MODEL[1000:301_000]
    assert [request.path for request in hub.requests if request.path.startswith("/cdn/")]
    assert hub.stray_authorizations == []


def test_a_redirect_within_the_hub_keeps_the_token(tmp_path: Path) -> None:
    with HubServer(tmp_path, resolve_cache=True) as hub:
        hub.token(TOKEN, reads=["org/model"])
        hub.commit("org/model", FILES)
        hub.repository("org/model").private = True
        reader = Reader("hub", hub.url, "config.json")
        assert reader.read(5, 50) == FILES["config.json"][5:50]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("file:///etc/passwd", "file://"),
        ("ftp://127.0.0.1/x", "ftp://"),
        ("//[bad", "malformed"),
        ("/org/model/resolve/loop?sig=secret", "in a loop"),
    ],
)
def test_a_redirect_to_no_good_place_is_refused(hub: HubServer, location: str, said: str) -> None:
    reader = Reader("hub", hub.url)
    hub.expire_links()
    hub.faults.add(match="/resolve/", redirect_to=location, times=None)
    error = reader.fails(UpstreamError)
    assert said in str(error)
    assert "secret" not in str(error)


def test_redirects_without_end_are_refused() -> None:
    places = iter(range(1000))

    def answer(head: str) -> list[bytes]:
        return [f"HTTP/1.1 302 Found\r\nLocation: /{next(places)}/x\r\nContent-Length: 0\r\n\r\n".encode()]

    with RawServer(answer) as server:
        origin = open_origin(parse_source(f"{server.url}/file.bin"), UpstreamConfig(stall_s=STALL_S))
        with pytest.raises(UpstreamError, match="10th redirect"):
            list(origin.list(None))
        assert len(server.heads) == 10
        origin.close()


# ---- signed URLs ---------------------------------------------------------------------------------


def resolves(hub: HubServer) -> int:
    return sum("/resolve/" in request.path and request.method == "GET" for request in hub.requests)


@pytest.mark.parametrize("kind", WEB)
def test_a_signed_url_is_resolved_once_and_again_when_it_expired(hub: HubServer, kind: str) -> None:
    reader = Reader(kind, hub.url)
    reader.read(0, 1)
    hub.reset()
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda start: reader.read(start, start + 1000), range(0, 64_000, 1000)))
    assert b"".join(parts) == MODEL[:64_000]
    assert resolves(hub) == 0
    hub.expire_links()
    assert reader.read() == MODEL[1000:301_000]
    assert resolves(hub) == 1


def test_threads_that_start_together_resolve_once(hub: HubServer) -> None:
    reader = Reader("hub", hub.url)
    hub.reset()
    hub.faults.add(match="/resolve/", delay_s=0.2)
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda start: reader.read(start, start + 1000), range(0, 8000, 1000)))
    assert b"".join(parts) == MODEL[:8000]
    assert resolves(hub) == 1


# ---- what the Hub says about versions ------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Repo-Commit": "0" * 40},
        {"ETag": f'"{"0" * 40}"'},
        {"X-Linked-ETag": f'"{"0" * 64}"'},
        {"X-Linked-Size": "7"},
        {"Content-Range": "bytes 0-9/11"},
    ],
    ids=str,
)
def test_another_version_at_the_hub_is_a_change(hub: HubServer, headers: dict[str, str]) -> None:
    reader = Reader("hub", hub.url, "config.json")
    size = reader.entry.size
    headers = {"Content-Range": f"bytes 0-9/{size}", **headers}
    hub.faults.add(match="/resolve/", status=206, headers=headers, body="0123456789")
    reader.fails(ChangedError, 0, 10)
    assert reader.read(0, 10) == FILES["config.json"][:10]


# ---- proxies and certificates --------------------------------------------------------------------


def test_a_proxy_is_used_and_excluded() -> None:
    head = 'HTTP/1.1 206 A\nETag: "v"\nContent-Range: bytes 0-0/7\nContent-Length: 1\nConnection: close\n\nx'
    answer = head.replace("\n", "\r\n").encode()
    with RawServer(lambda _: [answer]) as proxy:
        place = proxy.url.replace("//", "//user:pass@")
        upstream = UpstreamConfig(proxies={"http": place, "no": "direct.test"}, stall_s=STALL_S)
        origin = open_origin(parse_source("http://upstream.test/file.bin"), upstream)
        assert [entry.size for entry in origin.list(None)] == [7]
        origin.close()
        assert proxy.heads[0].startswith("GET http://upstream.test/file.bin HTTP/1.1\r\n")
        assert "proxy-authorization: basic dxnlcjpwyxnz" in proxy.heads[0].lower()
        origin = open_origin(parse_source("http://direct.test/file.bin"), upstream)
        with pytest.raises(UnavailableError) as caught:
            list(origin.list(None))
        assert "pass" not in str(caught.value)
        origin.close()
        assert len(proxy.heads) == 1


def test_a_proxy_that_wants_a_password_is_about_credentials() -> None:
    with RawServer(
        lambda _: [b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"]
    ) as proxy:
        for scheme in ("http", "https"):
            upstream = UpstreamConfig(proxies={scheme: proxy.url}, stall_s=STALL_S)
            origin = open_origin(parse_source(f"{scheme}://upstream.test/file.bin"), upstream)
            with pytest.raises(CredentialsError, match="proxy"):
                list(origin.list(None))
            origin.close()
