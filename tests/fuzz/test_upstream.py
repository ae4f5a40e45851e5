"""What a server can say: the Hub's JSON, its headers, an answer to a range, over real sockets."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.backoff import RETRY_AFTER_MAX_S
from bdnfs.core.errors import BdnfsError, UpstreamError
from bdnfs.delivery.resolve import list_snapshot
from bdnfs.manifest.model import FileEntry, Manifest
from bdnfs.origins.answers import content_length, content_range, retry_after_s, shown, status_error
from bdnfs.origins.credentials import Fixed
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.https import HttpsOrigin
from bdnfs.origins.hub import HubOrigin
from bdnfs.origins.hub_revision import branch_commit
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import Secret, UpstreamConfig
from bdnfs.spec.patterns import Patterns
from bdnfs.spec.source import parse_source
from bdnfs.spec.weights import Weights
from tests.contract.raw import RawServer
from tests.fuzz.judging import CPU_S_MAX, FUZZ, check_message, judged
from tests.fuzz.mutations import VALUES, mutated

TOKEN = "hf_FuzzedTokenThatNobodyMaySee"
SHOWN = Fixed(f"Bearer {TOKEN}", "a token")
COMMIT = "0123456789abcdef" * 2 + "01234567"
FILE = {"type": "file", "path": "a/b.bin", "size": 5, "oid": "a" * 40}
LFS = {**FILE, "path": "c", "lfs": {"oid": "b" * 64, "size": 5, "pointerSize": 134}}

JUNK = st.one_of(
    VALUES,
    st.sampled_from(
        [-1, 2**63, 2**64, 2**70, 1e300, True, "a" * 40, "../../x", "a//b", "/x", "..", "a\0", "\n"]
    ),
)


@st.composite
def listings(draw: st.DrawFn) -> bytes:
    """Draw a page of the tree API with some of its values replaced, or something else altogether."""
    if draw(st.integers(0, 3)) == 0:
        return draw(mutated([msgspec.json.encode([FILE, LFS]), b'{"sha": "' + COMMIT.encode() + b'"}', b""]))
    page = []
    for _ in range(draw(st.integers(0, 3))):
        entry: dict[str, Any] = dict(draw(st.sampled_from([FILE, LFS])))
        for name in draw(st.lists(st.sampled_from(["type", "path", "size", "oid", "lfs"]), max_size=2)):
            entry[name] = draw(JUNK)
        if isinstance(entry.get("lfs"), dict) and draw(st.booleans()):
            entry["lfs"] = {**entry["lfs"], draw(st.sampled_from(["oid", "size"])): draw(JUNK)}
        page.append(entry)

    return json.dumps(page).encode()  # it writes halves of surrogate pairs, as a server can


_NAMES = (
    *(
        "Content-Range",
        "Content-Length",
        "Retry-After",
        "ETag",
        "Link",
        "Location",
        "Last-Modified",
        "RateLimit",
    ),
    *(
        "Content-Encoding",
        "Transfer-Encoding",
        "X-Linked-Size",
        "X-Linked-ETag",
        "X-Repo-Commit",
        "Connection",
    ),
    *("X-Error-Code", "X-Error-Message", "Content-Type"),
)
_VALUES = (
    *(
        b"bytes 0-4/5",
        b"5",
        b'"abc"',
        b'W/"abc"',
        b'</api?cursor=1>; rel="next"',
        b"http://[::1/x",
        b"//h:99999/x",
    ),
    *(
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 08:49:37 +" + b"9" * 30,
        b"bytes */" + b"9" * 5000,
    ),
    *(b'"api";r=0;t=5', b"chunked", b"gzip", b"GatedRepo", b"RepoNotFound", b"\x1b[2J\x07", COMMIT.encode()),
    *(b"<" * 9000, b"<>;" * 3000, TOKEN.encode(), b"/x?token=" + TOKEN.encode(), b"\xc2\x9b31m"),
)
SAID = mutated(_VALUES).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b" ")[:60_000])
HEADERS = st.lists(st.tuples(st.sampled_from(_NAMES), SAID), max_size=3)
STATUS = st.sampled_from(
    [200, 200, 200, 206, 206, 301, 302, 307, 401, 403, 404, 412, 416, 429, 500, 503, 999]
)


def leads_away(name: str, value: bytes) -> bool:
    """Say whether a header would have us ask other machines."""
    try:
        return name == "Location" and urlsplit(urljoin("http://-/", value.decode("latin-1"))).hostname != "-"
    except ValueError:
        return False


class Scripted:
    """A server that says the same to everyone, until it is told something else."""

    def __init__(self) -> None:
        self.answer = b""

    def say(self, status: int, headers: list[tuple[str, bytes]], body: bytes) -> None:
        lines = [f"HTTP/1.1 {status} Said".encode(), b"Connection: close"]
        lines += [name.encode() + b": " + value for name, value in headers if not leads_away(name, value)]
        if not any(name in ("Content-Length", "Transfer-Encoding") for name, _ in headers):
            lines.append(b"Content-Length: %d" % len(body))
        self.answer = b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.fixture(scope="module")
def said() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def server(said: Scripted) -> Iterator[RawServer]:
    with RawServer(lambda _: [said.answer]) as started:
        yield started


def judged_without_secret(parse: Any) -> Any:
    found = judged(parse)
    if isinstance(found, BdnfsError):
        assert TOKEN not in str(found)
    return found


HTTP = HttpConfig(stall_s=5.0)


@FUZZ
@given(body=listings(), status=STATUS, headers=HEADERS)
def test_whatever_a_hub_answers_is_a_commit_or_an_error(
    server: RawServer, said: Scripted, body: bytes, status: int, headers: list[tuple[str, bytes]]
) -> None:
    said.say(status, headers, body)
    ways = (
        lambda: branch_commit(server.url, "org/name", "model", "main", TOKEN, timeout_s=5.0),
        lambda: HubOrigin(server.url, "org/name", "model", SHOWN, HTTP).resolve("main"),
    )
    for way in ways:
        found = judged_without_secret(way)
        assert isinstance(found, BdnfsError) or len(found) == 40


@FUZZ
@given(body=listings(), headers=st.just([]) | HEADERS)
def test_whatever_a_hub_lists_is_a_manifest_that_stays_in_its_tree_or_an_error(
    server: RawServer, said: Scripted, body: bytes, headers: list[tuple[str, bytes]]
) -> None:
    said.say(200, headers, body)
    source = parse_source(f"hf://org/name@{COMMIT}")
    origin = open_origin(source, UpstreamConfig(hf_endpoint=server.url, hf_token=Secret(TOKEN), stall_s=5.0))
    weights = Weights(source, "/m", Patterns(), None)
    try:
        found = judged_without_secret(
            lambda: list_snapshot(origin, weights, COMMIT, lambda _: None, attempts=1)
        )
    finally:
        origin.close()
    if isinstance(found, BdnfsError):
        return
    for entry in found.files:
        parts = entry.path.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert "\0" not in entry.path
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Manifest) == found
    assert found.total_bytes < 1 << 63


@FUZZ
@given(status=STATUS, headers=HEADERS, body=st.binary(max_size=9), ranged=st.booleans(), hub=st.booleans())
def test_whatever_a_server_answers_to_a_read_is_the_bytes_or_an_error(
    server: RawServer,
    said: Scripted,
    status: int,
    headers: list[tuple[str, bytes]],
    body: bytes,
    ranged: bool,
    hub: bool,
) -> None:
    said.say(status, headers, body)
    origin = (
        HubOrigin(server.url, "org/name", "model", SHOWN, HTTP)
        if hub
        else HttpsOrigin(f"{server.url}/f", SHOWN, HTTP)
    )
    entry = FileEntry("f", 5, None, '"abc"')
    into = bytearray(5)

    def read() -> bytes:
        if ranged:
            origin.read(COMMIT, entry, 0, memoryview(into))
            return bytes(into)
        return b"".join(bytes(piece) for piece in origin.stream(COMMIT, entry))

    try:
        found = judged_without_secret(read)
    finally:
        origin.close()
    assert isinstance(found, BdnfsError) or len(found) == 5


@FUZZ
@given(status=STATUS, headers=HEADERS, body=st.binary(max_size=9))
def test_whatever_a_server_answers_to_a_look_is_a_file_or_an_error(
    server: RawServer, said: Scripted, status: int, headers: list[tuple[str, bytes]], body: bytes
) -> None:
    said.say(status, headers, body)
    origin = HttpsOrigin(f"{server.url}/f", SHOWN, HTTP)
    source = parse_source(f"{server.url}/f")
    try:
        found = judged_without_secret(
            lambda: list_snapshot(
                origin, Weights(source, "/m", Patterns(), None), None, lambda _: None, attempts=1
            )
        )
    finally:
        origin.close()
    assert isinstance(found, BdnfsError) or 0 <= found.total_bytes < 1 << 63


class One(dict[str, str]):
    """One header."""


@FUZZ
@given(value=SAID, status=STATUS)
def test_a_header_is_a_value_or_none(value: bytes, status: int) -> None:
    text = value.decode("latin-1")
    for name in ("Content-Range", "Content-Length", "Retry-After", "RateLimit"):
        headers = One({name: text})
        waited = judged(lambda: retry_after_s(text))
        assert waited is None or (isinstance(waited, float) and waited >= 0)
        assert all(
            part is None or part >= 0 for part in judged(lambda headers=headers: content_range(headers))
        )  # type: ignore[union-attr,misc]
        judged(lambda headers=headers: content_length(headers))  # type: ignore[misc]
        check_message(status_error("reading x", f"http://h/{text}", status, headers))
    assert "\x1b" not in shown(f"http://h/{text}")


@pytest.mark.parametrize("link", ["<" * 60_000, "<>;" * 20_000, "<a>; " * 12_000, '<a>; rel="' * 6_000])
def test_a_hostile_link_header_takes_no_time(server: RawServer, said: Scripted, link: str) -> None:
    """A regex over it must not try every start against every end, least of all with the GIL held."""
    said.say(200, [("Link", link.encode())], b"[]")
    origin = HubOrigin(server.url, "org/name", "model", None, HTTP)
    began_s = time.thread_time()
    with contextlib.suppress(UpstreamError):
        list(origin.list(COMMIT))
    origin.close()
    assert time.thread_time() - began_s < CPU_S_MAX


def test_a_wait_of_ages_is_for_a_person_to_hear() -> None:
    assert (retry_after_s("999999999") or 0) > RETRY_AFTER_MAX_S
