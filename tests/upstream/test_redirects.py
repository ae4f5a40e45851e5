"""Redirects that want more than to lead on: no secret follows them to another host, and bad ones end in an error."""

import contextlib
import time
from collections.abc import Callable

import pytest

from bdnfs.core.errors import BdnfsError, UpstreamError
from bdnfs.manifest.model import FileEntry
from bdnfs.origins.base import Origin
from bdnfs.origins.credentials import AccessToken, Fixed
from bdnfs.origins.gcs import GcsOrigin
from bdnfs.origins.gcs_client import GcsClient
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.hub_revision import branch_commit
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import Secret, UpstreamConfig
from bdnfs.spec.source import parse_source
from tests.contract.raw import RawServer
from tests.upstream.fronts import assert_clear
from tests.upstream.listings import COMMIT, answer, entry

TOKEN = "hidden-key-of-somebody"
AWS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": TOKEN}
BODY = b"0123456"
# Ten redirects of a request; a bucket that does not answer for one key is then asked for its listing.
REQUESTS_MAX = 24
STALL_S = 5.0


def hub(url: str) -> Origin:
    return open_origin(
        parse_source("hf://org/model"), UpstreamConfig(hf_endpoint=url, stall_s=STALL_S), Secret(TOKEN)
    )


def https(url: str) -> Origin:
    return open_origin(
        parse_source(f"{url}/file.bin"), UpstreamConfig(stall_s=STALL_S), Secret(f"user:{TOKEN}")
    )


def s3(url: str) -> Origin:
    upstream = UpstreamConfig(aws={"AWS_ENDPOINT_URL": url, **AWS}, stall_s=STALL_S)
    return open_origin(parse_source("s3://bucket/file.bin"), upstream)


def azure(url: str) -> Origin:
    variables = {"AZURE_STORAGE_ENDPOINT": f"{url}/acct", "AZURE_STORAGE_KEY": "aGlkZGVuLWtleQ=="}
    upstream = UpstreamConfig(azure=variables, stall_s=STALL_S)
    return open_origin(parse_source("azure://acct/box/file.bin"), upstream)


def gs(url: str) -> Origin:
    client = GcsClient(url, HttpConfig(stall_s=STALL_S))
    token = Fixed(AccessToken(TOKEN, time.time() + 3600), "the token")
    return GcsOrigin("bucket", "file.bin", token, client, STALL_S)


def asks_the_question(url: str) -> None:
    branch_commit(url, "org/model", "model", None, TOKEN, timeout_s=STALL_S)


def resolves(url: str) -> None:
    hub(url).resolve(None)


def lists_a_hub(url: str) -> None:
    list(hub(url).list(COMMIT))


def looks_up_a_file(url: str) -> None:
    list(https(url).list(None))


def looks_up_an_object(url: str) -> None:
    list(s3(url).list(None))


def looks_up_a_blob(url: str) -> None:
    list(azure(url).list(None))


def lists_google(url: str) -> None:
    with contextlib.closing(gs(url)) as origin:
        list(origin.list(None))


def reads_a_blob(url: str) -> None:
    read(azure(url))


def reads_from_google(url: str) -> None:
    read(gs(url))


def reads_from_a_hub(url: str) -> None:
    read(hub(url))


def reads_a_file(url: str) -> None:
    read(https(url))


def reads_an_object(url: str) -> None:
    read(s3(url))


def read(origin: Origin) -> None:
    found = FileEntry("file.bin", len(BODY), identity='"v1"')
    into = bytearray(len(BODY))
    try:
        origin.read(COMMIT, found, 0, memoryview(into))
    finally:
        origin.close()


WAYS: list[Callable[[str], None]] = [
    asks_the_question,
    resolves,
    lists_a_hub,
    looks_up_a_file,
    looks_up_an_object,
    looks_up_a_blob,
    lists_google,
    reads_a_blob,
    reads_from_google,
    reads_from_a_hub,
    reads_a_file,
    reads_an_object,
]


def redirect(place: str) -> list[bytes]:
    return answer(b"", [f"Location: {place}"], "302 Found")


def anything(head: str) -> list[bytes]:
    """Answer as any of the stores would, so that who comes here goes on."""
    if "/api/" in head:
        return answer([entry("file.bin")] if "/tree/" in head else {"sha": COMMIT})
    size = len(BODY)
    whole = ['ETag: "v1"', "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT"]
    if head.startswith("HEAD"):
        return [
            f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n".encode(),
            "\r\n".join([*whole, "\r\n"]).encode(),
        ]
    asked = head.lower().partition("range: bytes=")[2].split("\r\n")[0]
    if not asked:
        return answer(BODY, whole)
    start, stop = (int(part) for part in asked.split("-"))
    return answer(
        BODY[start : stop + 1], [*whole, f"Content-Range: bytes {start}-{stop}/{size}"], "206 Partial Content"
    )


@pytest.mark.parametrize("way", WAYS)
def test_no_secret_follows_a_redirect_to_another_host(way: Callable[[str], None]) -> None:
    with RawServer(anything) as other, RawServer(lambda _: redirect(f"{other.url}/elsewhere")) as home:
        try:
            way(home.url)
        except BdnfsError as error:
            assert_clear(error)
        asked = "".join(home.heads).lower()
        assert (
            TOKEN in asked
            or "dxnlcjpoawrkzw4t" in asked
            or "akidexample" in asked
            or "sharedkey acct" in asked
        ), "it was sent at home"
        strange = "".join(other.heads).lower()
        assert "authorization" not in strange
        assert "akidexample" not in strange
        assert TOKEN not in strange


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "place",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1:1/_x",
        "//[bad",
        "http://h:99999999/",
        "data:,x",
    ],
)
def test_a_redirect_to_what_is_no_web_server_is_refused(way: Callable[[str], None], place: str) -> None:
    with RawServer(lambda _: redirect(place)) as home:
        with pytest.raises(UpstreamError) as caught:
            way(home.url)
        assert_clear(caught.value)
        assert len(home.heads) <= 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("places", [("/a", "/b"), ("/same",)], ids=["two", "one"])
def test_a_redirect_in_a_loop_ends_soon(way: Callable[[str], None], places: tuple[str, ...]) -> None:
    def said(head: str) -> list[bytes]:
        at = head.split(" ")[1]
        return redirect(places[0] if at == places[-1] else places[-1])

    with RawServer(said) as home:
        with pytest.raises(UpstreamError) as caught:
            way(home.url)
        assert_clear(caught.value)
        assert len(home.heads) <= REQUESTS_MAX


@pytest.mark.parametrize("way", WAYS)
def test_redirects_to_ever_new_places_end_soon(way: Callable[[str], None]) -> None:
    def said(head: str) -> list[bytes]:
        return redirect(f"/{len(home.heads)}")

    with RawServer(said) as home:
        with pytest.raises(UpstreamError) as caught:
            way(home.url)
        assert_clear(caught.value)
        assert len(home.heads) <= REQUESTS_MAX
