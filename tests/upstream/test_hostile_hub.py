"""A Hub that lists what no repository holds: refused by name before a byte, or held exactly as it is."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import BdnfsError, SpaceError, UpstreamError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.delivery.resolve import list_snapshot
from bdnfs.manifest.model import Manifest
from bdnfs.origins import hub as hub_origin_module
from bdnfs.origins.registry import open_origin
from bdnfs.spec.source import parse_source
from bdnfs.spec.weights import Weights
from benchmarks.servers.hub import HubServer
from tests.contract.raw import RawServer
from tests.unit.cache.stocked import check_books, content, orphans, shown
from tests.unit.delivery.downloads import REPO, fill, opened, read, upstream, within
from tests.upstream.fronts import assert_clear
from tests.upstream.listings import COMMIT, Entry, answer, entry, listing_hub, many

TEN_TB = 10 * 10**12


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        yield server


def manifest_of(url: str, text: str = f"hf://{REPO}") -> Manifest:
    """Resolve and list as a mount does."""
    source = parse_source(text)
    origin = open_origin(source, upstream(hf_endpoint=url))
    try:
        return list_snapshot(origin, Weights(source, "m"), origin.resolve(None), lambda _: None, attempts=1)
    finally:
        origin.close()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../../etc/cron.d/x", "'..'"),
        ("a/../../b", "'..'"),
        ("/etc/passwd", "absolute"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x1b[2Jb", "control"),
        ("a\x7fb", "control"),
        ("x" * 300, "255 bytes"),
        ("é" * 150, "255 bytes"),
        ("d/" * 1100 + "f", "2048 bytes"),
        ("a//b", "''"),
        ("a/", "''"),
        ("", "''"),
        (".", "'.'"),
    ],
    ids=[
        "up", "up-inside", "absolute", "nul", "newline", "escape", "delete", "300-bytes", "300-bytes-utf8",
        "2201-bytes-path", "empty-part", "slash-at-the-end", "empty", "dot",
    ],
)  # fmt: skip
def test_a_name_that_no_tree_can_hold_is_refused_by_name(hub: HubServer, path: str, said: str) -> None:
    hub.commit(REPO, {"ok": b"x"}, tree=[entry("ok"), entry(path)])
    with pytest.raises(UpstreamError) as caught:
        manifest_of(hub.url)
    assert_clear(caught.value)
    assert said in str(caught.value)
    assert hub.bytes_sent == 0


@pytest.mark.parametrize(
    "tree",
    [
        [entry("a"), entry("a/b")],
        [entry("a/b"), entry("a")],
        [entry("a/b/c/d"), entry("a/b")],
        [entry("a"), entry("a", number=1)],
    ],
    ids=["file-first", "directory-first", "deep", "twice"],
)
def test_a_name_that_is_two_things_at_once_is_refused(hub: HubServer, tree: list[Entry]) -> None:
    hub.commit(REPO, {"ok": b"x"}, tree=tree)
    with pytest.raises(UpstreamError, match=r"both as a file and as a directory|twice") as caught:
        manifest_of(hub.url)
    assert "nothing was fetched" in str(caught.value)
    assert hub.bytes_sent == 0


def test_names_that_are_only_odd_are_all_held_as_they_are(hub: HubServer, cache: NodeCache) -> None:
    odd = [
        "Model.bin", "model.bin", "MODEL.BIN", "Sub/x", "sub/x", "SUB/X",
        "caf\u00e9", "cafe\u0301", "x" * 255, "é" * 127, "con", "aux.txt", "ends with a dot.", " blank ", "~", "-rf",
        "a\\b", "%2e%2e", "..a", "a..", "...", "$(id)", "\u202egpj", "/".join(["d" * 200] * 10),
    ]  # fmt: skip
    files = {path: content(path, 100 + place) for place, path in enumerate(odd)}
    hub.commit(REPO, files)
    origin = open_origin(parse_source(f"hf://{REPO}"), upstream(hf_endpoint=hub.url))
    assert shown(fill(cache, manifest_of(hub.url), origin)) == files
    origin.close()


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [-1, "7", 7.0, 1e300, None, True, [], 2**46 + 1, 2**62, 2**63, 2**64, 10**30], ids=str
)
def test_a_size_that_no_file_has_is_refused(size: object) -> None:
    pages = [[entry("ok"), entry("model.bin", size)]]
    with listing_hub(lambda number: pages[number] if number < 1 else None) as server:
        with pytest.raises(UpstreamError) as caught:
            manifest_of(server.url)
        assert_clear(caught.value)


@pytest.mark.parametrize("off", [-1, 1, -4096, CHUNK_BYTES], ids=str)
@pytest.mark.parametrize("path", ["config.json", "model.safetensors"])
def test_a_size_that_lies_about_its_file_is_an_error_and_nothing_is_kept(
    hub: HubServer, cache: NodeCache, path: str, off: int
) -> None:
    files = {"config.json": content("c", 20_000), "model.safetensors": content("m", CHUNK_BYTES + 5000)}
    hub.commit(REPO, files)
    origin = open_origin(parse_source(f"hf://{REPO}"), upstream(hf_endpoint=hub.url))
    tree: list[Entry] = []
    for file in manifest_of(hub.url).files:
        size = file.size + (off if file.path == path else 0)
        digest = str(file.digest).partition(":")[2]
        lfs = {"lfs": {"oid": digest, "size": size}} if file.path.endswith("tensors") else {}
        tree.append({"type": "file", "path": file.path, "size": size, "oid": file.identity, **lfs})
    hub.commit(REPO, files, tree=tree)
    with pytest.raises(BdnfsError) as caught:
        fill(cache, manifest_of(hub.url), origin)
    assert_clear(caught.value)
    origin.close()
    assert not any(cache.layout.trees.iterdir())
    check_books(cache)
    assert orphans(cache) == set()


def test_ten_terabytes_are_refused_before_the_first_byte(hub: HubServer, cache: NodeCache) -> None:
    hub.commit(REPO, {"ok": b"x"}, tree=[entry("ok"), entry("model.bin", TEN_TB)])
    origin = open_origin(parse_source(f"hf://{REPO}"), upstream(hf_endpoint=hub.url))
    with pytest.raises(SpaceError, match=r"needs 9\.09 TiB"):
        fill(cache, manifest_of(hub.url), origin)
    origin.close()
    assert hub.bytes_sent == 0
    check_books(cache)


def test_ten_terabytes_are_read_through_a_window(cache: NodeCache) -> None:
    def at(start: int, stop: int) -> bytes:
        return b"".join(b"%015d\n" % number for number in range(start // 16, -(-stop // 16)))[start % 16 :][
            : stop - start
        ]

    def said(head: str) -> list[bytes]:
        asked = head.lower().partition("range: bytes=")[2].split("\r\n")[0]
        start, stop = int(asked.split("-")[0]), int(asked.split("-")[1]) + 1
        headers = ['ETag: "v1"', f"Content-Range: bytes {start}-{stop - 1}/{TEN_TB}"]
        return answer(at(start, stop), headers, "206 Partial Content")

    with RawServer(said) as server:
        origin = open_origin(parse_source(f"{server.url}/model.bin"), upstream())
        manifest = Manifest("https", origin.name, "listing", tuple(origin.list(None)))

        async def main() -> None:
            async with opened(cache, manifest, origin, window=True) as delivery:
                for start in (0, TEN_TB // 2 - 100, 9 * 10**12 + 77, TEN_TB - 5000):
                    assert await read(delivery, "model.bin", start, start + 5000) == at(start, start + 5000)

        within(main)
        origin.close()
    check_books(cache)


# ---- pages ---------------------------------------------------------------------------------------


def test_a_listing_that_goes_round_in_a_circle_ends_at_once() -> None:
    with listing_hub(many(10**9), link=lambda _: f"/api/models/{REPO}/tree/{COMMIT}?cursor=1") as server:
        with pytest.raises(UpstreamError, match="in a circle"):
            manifest_of(server.url)
        assert len(server.heads) < 10


def test_a_page_that_comes_again_under_other_names_ends_at_once() -> None:
    same = [entry("a"), entry("b", number=1)]
    with listing_hub(lambda _: same) as server:
        with pytest.raises(UpstreamError, match="in a circle"):
            manifest_of(server.url)
        assert len(server.heads) < 10


@pytest.mark.parametrize("empty", [False, True], ids=["full", "empty"])
def test_a_listing_without_end_ends(empty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_origin_module, "PAGES_MAX", 20)
    monkeypatch.setattr(hub_origin_module, "FILES_MAX", 5 * 1000)
    with listing_hub((lambda _: []) if empty else many(10**9)) as server:
        with pytest.raises(UpstreamError, match="no repository is that large"):
            manifest_of(server.url)
        assert len(server.heads) <= (22 if empty else 9)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'[{"type":"file","path":' + b"[" * 100_000,
        b"\xff\xfe",
        b'[{"type":"file","path":"\\ud800","size":1,"oid":"%s"}]' % (b"0" * 40),
        b'[{"type":"file","path":"x","size":1,"oid":"%s","lfs":{"size":1,"oid":5}}]' % (b"0" * 40),
        b'[{"type":"file","path":"x","size":1,"oid":"%s","lfs":[1]}]' % (b"0" * 40),
        b'{"error":"no"}',
        b"7",
        b"null",
        b"",
    ],
    ids=[
        "deep",
        "deep-inside",
        "no-text",
        "surrogate",
        "lfs-number",
        "lfs-list",
        "error",
        "number",
        "null",
        "empty",
    ],
)
def test_a_listing_that_is_none_is_refused(body: bytes) -> None:
    def said(head: str) -> list[bytes]:
        return answer({"sha": COMMIT}) if "/revision/" in head else answer(body)

    with RawServer(said) as server:
        with pytest.raises(UpstreamError) as caught:
            manifest_of(server.url)
        assert_clear(caught.value)


def test_an_answer_as_large_as_a_disk_is_not_taken_into_memory() -> None:
    def said(head: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n["
        while not server.closing.is_set():
            yield b" " * (1 << 20)

    with RawServer(said) as server:
        began_s = time.monotonic()
        with pytest.raises(UpstreamError, match="more than 67108864 bytes"):
            manifest_of(server.url)
        assert time.monotonic() - began_s < 30.0
