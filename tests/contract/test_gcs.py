"""What is Google Cloud Storage's alone: generations, tokens, and servers that fail."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

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
from bdnfs.origins.credentials import AccessToken, Fixed
from bdnfs.origins.gcs import GcsOrigin
from bdnfs.origins.gcs_access import machine_token
from bdnfs.origins.gcs_client import GcsClient
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import UpstreamConfig
from bdnfs.spec.source import parse_source
from tests.contract.raw import RawServer

NAME, GENERATION = "file.bin", "1700000000000001"
BODY = "b" * 100
RANGE = "Content-Range: bytes 100-199/1000\nContent-Length: 100\n"
GENERATED = f"x-goog-generation: {GENERATION}\n"


def answer(text: str) -> list[bytes]:
    return [f"HTTP/1.1 {text}".replace("\n", "\r\n").encode()]


def json_answer(found: object) -> list[bytes]:
    body = json.dumps(found)
    return answer(f"200 OK\nContent-Length: {len(body)}\nConnection: close\n\n{body}")


def item(name: str = NAME, generation: str = GENERATION) -> dict[str, str]:
    return {"name": name, "size": "1000", "generation": generation}


def target(head: str) -> str:
    return head.split(" ")[1]


def origin_at(server: RawServer, place: str = f"gs://bucket/{NAME}", stall_s: float = 0.5) -> Origin:
    upstream = UpstreamConfig(google={"STORAGE_EMULATOR_HOST": server.url}, stall_s=stall_s)
    return open_origin(parse_source(place), upstream)


def read_hundred(origin: Origin, entry: FileEntry) -> bytes:
    into = bytearray(100)
    origin.read(None, entry, 100, memoryview(into))
    return bytes(into)


FAULTS: list[tuple[str, type[BdnfsError]]] = [
    ("401 A\nContent-Length: 0\n\n", CredentialsError),
    ("403 A\nContent-Length: 0\n\n", CredentialsError),
    # The object is there, its generation too, and yet it is not found: never taken for bytes that came.
    ("404 A\nContent-Length: 0\n\n", NotFoundError),
    ("416 A\nContent-Length: 0\n\n", ChangedError),
    ("429 A\nRetry-After: 1\nContent-Length: 0\n\n", UnavailableError),
    ("500 A\nContent-Length: 0\n\n", UnavailableError),
    ("503 A\nContent-Length: 0\n\n", UnavailableError),
    ("302 A\nLocation: http://127.0.0.1:1/\nContent-Length: 0\n\n", UpstreamError),
    ("400 A\nContent-Length: 0\n\n", UpstreamError),
    (f"200 OK\nContent-Length: 1000\n\n{BODY}", UpstreamError),
    (f"206 A\nContent-Range: bytes 101-200/1000\nContent-Length: 100\n\n{BODY}", UpstreamError),
    (f"206 A\nContent-Range: bytes 100-199/1000\nContent-Length: 101\n\n{BODY}b", UpstreamError),
    (f"206 A\nContent-Range: bytes 100-199/1000\nContent-Length: 99\n\n{BODY[1:]}", UnavailableError),
    (f"206 A\n{RANGE}\n{BODY[1:]}", UnavailableError),
    (f"206 A\nContent-Range: bytes 100-199/1001\nContent-Length: 100\n\n{BODY}", ChangedError),
    (f"206 A\nx-goog-generation: 7\n{RANGE}\n{BODY}", ChangedError),
    ("an answer of no kind\n\n", UnavailableError),
]


@pytest.mark.parametrize(("said", "expected"), FAULTS)
def test_a_fault_is_one_class_and_never_the_right_bytes(said: str, expected: type[BdnfsError]) -> None:
    with RawServer(
        lambda head: answer(said) if "alt=media" in target(head) else json_answer(item())
    ) as server:
        origin = origin_at(server)
        (entry,) = origin.list(None)
        assert (entry.path, entry.size, entry.identity) == (NAME, 1000, GENERATION)
        with pytest.raises(BdnfsError) as caught:
            read_hundred(origin, entry)
        assert type(caught.value) is expected, caught.value
        # One request each: whether to try again is decided elsewhere.
        assert len([head for head in server.heads if "alt=media" in target(head)]) == 1
        origin.close()


def test_a_read_is_pinned_to_its_generation_and_asks_once() -> None:
    good = answer(f"206 A\n{GENERATED}{RANGE}Connection: close\n\n{BODY}")
    with RawServer(lambda head: good if "alt=media" in target(head) else json_answer(item())) as server:
        origin = origin_at(server)
        (entry,) = origin.list(None)
        assert read_hundred(origin, entry) == BODY.encode()
        assert [f"generation={GENERATION}" in target(head) for head in server.heads] == [False, True]
        # An object that is stored compressed is wanted as it is stored.
        assert "accept-encoding: gzip\r\n" in server.heads[-1].lower()
        origin.close()


def test_a_generation_that_is_gone_with_another_in_its_place_is_a_change() -> None:
    gone = answer("404 A\nContent-Length: 0\n\n")
    now = [GENERATION]
    with RawServer(
        lambda head: gone if "alt=media" in target(head) else json_answer(item(generation=now[0]))
    ) as server:
        origin = origin_at(server)
        (entry,) = origin.list(None)
        now[0] = "1700000000000002"
        with pytest.raises(ChangedError):
            read_hundred(origin, entry)
        origin.close()


@pytest.mark.parametrize("pause_s", [0.02, 60.0])
@pytest.mark.parametrize("place", ["head", "body"])
def test_a_trickle_and_a_stall_end_in_time(place: str, pause_s: float) -> None:
    def trickle(head: str) -> Iterator[bytes]:
        if "alt=media" not in target(head):
            yield json_answer(item())[0]
            return
        (whole,) = answer(f"206 A\n{RANGE}\n{BODY}")
        if place == "body":
            cut = len(whole) - len(BODY)
            yield whole[:cut]
            whole = whole[cut:]
        for byte in whole:
            if server.closing.wait(pause_s):
                return
            yield bytes((byte,))

    with RawServer(trickle) as server:
        origin = origin_at(server, stall_s=0.4)
        (entry,) = origin.list(None)
        began_s = time.monotonic()
        with pytest.raises(UnavailableError):
            read_hundred(origin, entry)
        assert time.monotonic() - began_s < 10
        origin.close()


def test_a_stalled_listing_ends_in_time() -> None:
    def silent(head: str) -> Iterator[bytes]:
        server.closing.wait(60)
        yield b""

    with RawServer(silent) as server:
        origin = origin_at(server, "gs://bucket", stall_s=0.3)
        with pytest.raises(UnavailableError):
            list(origin.list(None))
        origin.close()


def listing(pages: dict[str, object]) -> Callable[[str], list[bytes]]:
    """Answer the page of each pageToken."""

    def said(head: str) -> list[bytes]:
        token = target(head).partition("pageToken=")[2].partition("&")[0]
        return json_answer(pages[token])

    return said


def test_a_listing_in_many_pages_is_whole_and_streams() -> None:
    pages: dict[str, object] = {
        "": {"items": [item("a")], "nextPageToken": "1"},
        "1": {"nextPageToken": "2"},
        "2": {"items": [item("c/d")]},
    }
    with RawServer(listing(pages)) as server:
        origin = origin_at(server, "gs://bucket")
        entries = iter(origin.list(None))
        assert next(entries).path == "a"
        assert len(server.heads) == 1
        assert [entry.path for entry in entries] == ["c/d"]
        origin.close()


@pytest.mark.parametrize(
    "page",
    [
        {"items": [item()], "nextPageToken": "1"},
        {"items": [{"name": "no generation", "size": "1"}]},
        {"items": [{**item(), "size": "-1"}]},
        {"items": [{**item(), "size": str(1 << 80)}]},
        {"items": [None]},
        {"items": {}},
        {"nextPageToken": 7},
        [],
        "text",
    ],
)
def test_a_listing_that_is_none_ends_in_one_error(page: object) -> None:
    with RawServer(listing({"": page, "1": page})) as server:
        origin = origin_at(server, "gs://bucket")
        with pytest.raises(UpstreamError) as caught:
            list(origin.list(None))
        assert type(caught.value) is UpstreamError
        origin.close()


# ---- credentials ---------------------------------------------------------------------------------


def tokened(head: str) -> list[bytes]:
    """Answer only who shows the machine's token."""
    if "authorization: bearer machine-token" in head.lower():
        if "alt=media" in target(head):
            return answer(f"206 A\n{GENERATED}{RANGE}Connection: close\n\n{BODY}")
        return json_answer(item())
    return answer("401 A\nContent-Length: 0\nConnection: close\n\n")


def machine(head: str) -> list[bytes]:
    """Answer as the metadata service does."""
    if "metadata-flavor: google" not in head.lower():
        return answer("403 A\nContent-Length: 0\nConnection: close\n\n")
    return json_answer({"access_token": "machine-token", "expires_in": 3599, "token_type": "Bearer"})


def test_the_machines_account_is_asked_for_where_everybody_is_refused() -> None:
    with RawServer(tokened) as server, RawServer(machine) as metadata:
        http = HttpConfig(stall_s=2.0)
        own = machine_token({"GCE_METADATA_HOST": metadata.url.removeprefix("http://")}, http)
        origin = GcsOrigin("bucket", NAME, None, GcsClient(server.url, http), 2.0, own)
        (entry,) = origin.list(None)
        with ThreadPoolExecutor(4) as threads:
            for found in threads.map(lambda _: read_hundred(origin, entry), range(8)):
                assert found == BODY.encode()
        assert len(metadata.heads) == 1
        origin.close()


def test_without_a_machines_account_the_refusal_is_what_is_said() -> None:
    refused = answer("404 A\nContent-Length: 0\nConnection: close\n\n")
    with RawServer(tokened) as server, RawServer(lambda _: refused) as metadata:
        http = HttpConfig(stall_s=2.0)
        own = machine_token({"GCE_METADATA_HOST": metadata.url.removeprefix("http://")}, http)
        origin = GcsOrigin("bucket", NAME, None, GcsClient(server.url, http), 2.0, own)
        with pytest.raises(CredentialsError, match="401"):
            list(origin.list(None))
        assert len(metadata.heads) >= 1
        origin.close()


def test_nobody_asks_for_the_machines_account_where_that_is_switched_off() -> None:
    assert machine_token({"NO_GCE_CHECK": "true"}, HttpConfig()) is None
    assert machine_token({"STORAGE_EMULATOR_HOST": "127.0.0.1:9"}, HttpConfig()) is None


@pytest.mark.parametrize("items", [[], [item(f"{NAME}/inner")]])
def test_who_may_list_but_not_look_is_listed_to(items: list[dict[str, str]]) -> None:
    def said(head: str) -> list[bytes]:
        if "/o/" in target(head):
            return answer("403 A\nContent-Length: 0\nConnection: close\n\n")
        return json_answer({"items": items})

    with RawServer(said) as server:
        origin = origin_at(server)
        if items:
            assert [entry.path for entry in origin.list(None)] == ["inner"]
        else:
            with pytest.raises(CredentialsError, match="403"):
                list(origin.list(None))
        origin.close()


def test_a_refusal_is_no_answer_to_what_the_source_names() -> None:
    """A token that has expired when a process first reads: later reads know again that one object is meant."""
    good = answer(f"206 A\n{GENERATED}{RANGE}Connection: close\n\n{BODY}")
    refused = [True]

    def said(head: str) -> list[bytes]:
        if refused[0]:
            return answer("401 A\nContent-Length: 0\nConnection: close\n\n")
        return good if "alt=media" in target(head) else json_answer(item())

    with RawServer(said) as server:
        origin = origin_at(server)
        entry = FileEntry(NAME, 1000, identity=GENERATION)
        with pytest.raises(CredentialsError):
            read_hundred(origin, entry)
        refused[0] = False
        assert read_hundred(origin, entry) == BODY.encode()
        origin.close()


def test_a_token_goes_to_its_endpoint_alone() -> None:
    with RawServer(lambda _: json_answer(item())) as elsewhere:
        moved = answer(f"302 A\nLocation: {elsewhere.url}/x\nContent-Length: 0\nConnection: close\n\n")
        with RawServer(lambda _: moved) as server:
            token = Fixed(AccessToken("hidden-token", time.time() + 3600), "the token")
            origin = GcsOrigin("bucket", NAME, token, GcsClient(server.url, HttpConfig(stall_s=2.0)), 2.0)
            with pytest.raises(UpstreamError) as caught:
                list(origin.list(None))
            assert "hidden-token" not in str(caught.value)
            assert "hidden-token" in server.heads[0]
            assert elsewhere.heads == []
            origin.close()


def test_the_environment_of_the_process_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "HTTP_PROXY", "http_proxy", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/none")
    with RawServer(lambda _: json_answer(item())) as server:
        origin = origin_at(server)
        assert [entry.path for entry in origin.list(None)] == [NAME]
        assert "authorization" not in server.heads[0].lower()
        origin.close()


def test_a_proxy_is_used() -> None:
    with RawServer(lambda _: json_answer(item())) as proxy:
        upstream = UpstreamConfig(
            google={"STORAGE_EMULATOR_HOST": "http://storage.example"}, proxies={"http": proxy.url}
        )
        origin = open_origin(parse_source(f"gs://bucket/{NAME}"), upstream)
        assert [entry.path for entry in origin.list(None)] == [NAME]
        assert target(proxy.heads[0]).startswith("http://storage.example/storage/v1/b/bucket/o/")
        origin.close()


def test_no_byte_is_written_once_a_read_has_ended() -> None:
    """A caller's buffer is used again after an error; what comes late must not land in it."""
    go_on = threading.Event()

    def late(head: str) -> Iterator[bytes]:
        if "alt=media" not in target(head):
            yield json_answer(item())[0]
            return
        yield answer(f"206 A\n{RANGE}\n")[0]
        go_on.wait(20)
        yield BODY.encode()

    with RawServer(late) as server:
        origin = origin_at(server, stall_s=0.3)
        (entry,) = origin.list(None)
        into = bytearray(b"\xa5" * 100)
        with pytest.raises(UnavailableError):
            origin.read(None, entry, 100, memoryview(into))
        go_on.set()
        list(origin.list(None))  # a whole round of the loop later
        assert into == b"\xa5" * 100
        origin.close()
