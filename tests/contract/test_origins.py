"""What every origin promises, against real servers."""

import base64
import contextlib
import json
import random
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bdnfs.core.errors import BdnfsError, ChangedError, NotFoundError, UnavailableError, UpstreamError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import Secret
from tests.contract.servers import Placed, Site

_RANDOM = random.Random(7)
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "deep/er/ünïcødé 模型 100%41 #1?.txt": b"every name is only a name",
    "with space & +plus=~'(1).bin": _RANDOM.randbytes(70_000),
    "empty.txt": b"",
    "chunk-minus-one.bin": _RANDOM.randbytes(CHUNK_BYTES - 1),
    "chunk.bin": _RANDOM.randbytes(CHUNK_BYTES),
    "chunk-plus-one.bin": _RANDOM.randbytes(CHUNK_BYTES + 1),
    "model.safetensors": _RANDOM.randbytes(20 << 20),
}


@pytest.fixture(scope="module")
def placed(site: Site) -> Iterator[dict[str, Placed]]:
    site.put("big", FILES)
    found = site.placed("big", FILES)
    yield found
    for origin, _, _ in found.values():
        origin.close()


def read(found: Placed, start: int, stop: int) -> bytes:
    origin, revision, entry = found
    into = bytearray(b"\xa5") * (stop - start)
    origin.read(revision, entry, start, memoryview(into))
    return bytes(into)


def stream(found: Placed) -> bytes:
    origin, revision, entry = found
    return b"".join(bytes(piece) for piece in origin.stream(revision, entry))


def test_every_file_is_listed_with_its_size_and_an_identity(site: Site, placed: dict[str, Placed]) -> None:
    wanted = {
        path.rpartition("/")[2] if site.one_file else path: len(content) for path, content in FILES.items()
    }
    assert {entry.path: entry.size for _, _, entry in placed.values()} == wanted
    assert all(entry.identity for _, _, entry in placed.values())


def test_ranges_are_promised_where_they_are_kept(site: Site, placed: dict[str, Placed]) -> None:
    assert {entry.ranged for _, _, entry in placed.values() if entry.size} == {site.ranged}


def test_two_listings_are_equal(site: Site, placed: dict[str, Placed]) -> None:
    again = site.placed("big", FILES)
    assert {path: entry for path, (_, _, entry) in again.items()} == {
        path: entry for path, (_, _, entry) in placed.items()
    }
    for origin, _, _ in again.values():
        origin.close()


def test_random_ranges_hold_the_right_bytes(site: Site, placed: dict[str, Placed]) -> None:
    if not site.ranged:
        with pytest.raises(UpstreamError, match="whole file"):
            read(placed["chunk.bin"], 10, 20)
        return
    dice = random.Random(11)
    for path, content in FILES.items():
        ranges = [
            (0, len(content)),
            (0, 0),
            (len(content), len(content)),
            (max(0, len(content) - 1), len(content)),
        ]
        for _ in range(6):
            start = dice.randrange(len(content) + 1)
            ranges.append((start, min(len(content), start + dice.randrange(1 << 20))))
        for start, stop in ranges:
            assert read(placed[path], start, stop) == content[start:stop], (path, start, stop)


def test_a_stream_holds_the_whole_file(placed: dict[str, Placed]) -> None:
    for path, content in FILES.items():
        assert stream(placed[path]) == content, path


def test_eight_threads_read_at_once(site: Site, placed: dict[str, Placed]) -> None:
    content = FILES["model.safetensors"]
    starts = range(0, len(content), 1 << 20)

    def part(start: int) -> bytes:
        if site.ranged:
            return read(placed["model.safetensors"], start, min(len(content), start + (1 << 20)))
        return stream(placed["model.safetensors"])[start : start + (1 << 20)]

    with ThreadPoolExecutor(8) as threads:
        assert b"".join(threads.map(part, starts)) == content


@pytest.mark.parametrize("after", [b"B" * 200_000, b"B" * 150_000, b"B" * 250_000])
def test_a_change_under_way_is_never_read(site: Site, after: bytes) -> None:
    before = b"A" * 200_000
    site.put("changing", {"file.bin": before})
    found = site.placed("changing", {"file.bin": before})["file.bin"]
    assert site.ranged is False or read(found, 0, 1000) == before[:1000]
    site.put("changing", {"file.bin": after})
    if site.immutable:
        assert read(found, 1000, 2000) == before[1000:2000]
        assert stream(found) == before
    else:
        if site.ranged:
            with pytest.raises(ChangedError, match="changed"):
                read(found, 1000, 2000)
        with pytest.raises(ChangedError, match="changed"):
            stream(found)
    found[0].close()


def test_what_is_not_there_is_not_found(site: Site) -> None:
    origin = site.open("no-such-collection")
    with pytest.raises(NotFoundError):
        list(origin.list(origin.resolve(None)))
    origin.close()


def test_a_file_that_is_gone_is_not_found(site: Site) -> None:
    site.put("going", {"file.bin": b"A" * 1000, "other.bin": b"B"})
    origin, revision, entry = site.placed("going", {"file.bin": b""})["file.bin"]
    site.put("going", {"other.bin": b"B"})
    if site.immutable:
        assert stream((origin, revision, entry)) == b"A" * 1000
    else:
        with pytest.raises(NotFoundError):
            stream((origin, revision, entry))
    origin.close()


def test_a_dead_server_is_unavailable(site: Site, placed: dict[str, Placed]) -> None:
    origin = site.dead("big", "config.json")
    _, revision, entry = placed["config.json"]
    # A directory has no server that could be dead; it can only be missing.
    expected = NotFoundError if site.name in ("file", "fsspec") else UnavailableError
    with pytest.raises(expected):
        list(origin.list(origin.resolve(None)))
    with pytest.raises(expected):
        stream((origin, revision, entry))
    origin.close()


def test_a_closed_origin_may_be_used_no_more_but_ends(site: Site, placed: dict[str, Placed]) -> None:
    origin = site.open("big", "config.json")
    revision = origin.resolve(None)
    origin.close()
    _, _, entry = placed["config.json"]
    with contextlib.suppress(UnavailableError):
        assert stream((origin, revision, entry)) == FILES["config.json"]


def test_names_tell_collections_and_servers_apart(site: Site, placed: dict[str, Placed]) -> None:
    names = {site.open("big", "x").name, site.open("other", "x").name, placed["config.json"][0].name}
    names.add(site.dead("big", "x").name)
    assert len(names) == (4 if site.one_file else 3)


SECRET = "hf_VerySecretTokenValue0123456789"


def test_no_error_holds_a_secret(site: Site) -> None:
    """Whatever is asked, in vain, with a secret, it is in no text of the error or of what led to it."""
    keys = f'{{"aws_access_key_id": "AK", "aws_secret_access_key": "{SECRET}", "aws_region": "us-east-1"}}'
    encoded = base64.b64encode(SECRET.encode()).decode()
    shape = dict.fromkeys(("s3", "r2", "cw"), keys) | {"azure": f'{{"account_key": "{encoded}"}}'}
    account = {"client_email": "a@b", "token_uri": "http://127.0.0.1:1/", "private_key": SECRET}
    shape["gs"] = json.dumps({"type": "service_account", **account})
    secret = Secret(shape.get(site.name, SECRET))
    origin = open_origin(site.source("no-such-collection"), site.upstream(), secret)
    with pytest.raises(BdnfsError) as caught:
        list(origin.list(origin.resolve(None)))
    said = (
        "".join(traceback.format_exception(caught.value))
        + repr(origin)
        + str(vars(caught.value))
        + origin.name
    )
    assert SECRET not in said
    assert encoded not in said
    assert "hidden-key" not in said
    origin.close()
