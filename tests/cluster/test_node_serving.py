"""What a node gives to its peers, and what it does not: through nginx, and without."""

import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdnfs.core.ranges import CHUNK_BYTES
from tests.cluster.serving import TOKEN, MirrorDirectory, Serving, until

_dice = random.Random(5)
SIZE = 300_000


@pytest.fixture(scope="module", params=["nginx", "alone"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A node that is alone in its cluster."""
    place = tmp_path_factory.mktemp(request.param)
    serving = Serving(place / "node", MirrorDirectory(place / "mirror"))
    serving.start(*([] if request.param == "nginx" else ["--no-nginx"]))
    assert (b"through nginx" in serving.out) == (request.param == "nginx")
    yield serving
    serving.stop()
    serving.end()


@pytest.fixture
def chunk(node: Serving) -> tuple[str, bytes]:
    """A chunk that the mirror has: its digest and its bytes."""
    data = _dice.randbytes(SIZE)
    return node.mirror.put(data)[0], data


def test_a_chunk_comes_from_the_mirror_once_and_from_the_share_afterwards(
    node: Serving, chunk: tuple[str, bytes]
) -> None:
    digest, data = chunk
    first = node.chunk(digest, SIZE)
    assert (first.status, first.body, first.tier) == (200, data, "mirror")
    node.mirror.object(digest).unlink()
    again = node.chunk(digest, SIZE)
    assert (again.status, again.body, again.tier) == (200, data, "share")
    assert again.headers["content-length"] == str(SIZE)
    assert digest in node.kept()


def test_a_whole_chunk_and_its_place_anywhere_in_a_file(node: Serving) -> None:
    data = _dice.randbytes(CHUNK_BYTES)
    (digest,) = node.mirror.put(data)
    reply = node.chunk(digest, CHUNK_BYTES, 5 * CHUNK_BYTES)
    assert (reply.status, reply.body) == (200, data)


def test_everyone_who_asks_at_once_gets_it(node: Serving, chunk: tuple[str, bytes]) -> None:
    digest, data = chunk
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(node.chunk(digest, SIZE))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.body == data for reply in replies] == [True] * 12


def test_held_asks_the_mirror_nothing(node: Serving, chunk: tuple[str, bytes]) -> None:
    digest, data = chunk
    assert node.chunk(digest, SIZE, held=True).status == 404
    assert digest not in node.kept()
    node.chunk(digest, SIZE)
    assert node.chunk(digest, SIZE, held=True).body == data


def test_a_chunk_that_the_mirror_has_not_is_not_found(node: Serving) -> None:
    assert node.chunk("0" * 64, SIZE).status == 404


def test_a_chunk_that_is_damaged_in_the_mirror_is_never_given(
    node: Serving, chunk: tuple[str, bytes]
) -> None:
    digest, _ = chunk
    node.mirror.object(digest).write_bytes(bytes(SIZE))
    reply = node.chunk(digest, SIZE)
    assert reply.status == 404
    assert digest not in node.kept()
    until(lambda: "does not hold the bytes" in node.err, "a warning")


@pytest.mark.parametrize(
    "authorization", ["", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer", TOKEN]
)
@pytest.mark.parametrize(
    "path", ["/v1/chunks/default/weights/", "/v1/node", "/metrics", "/v1/report", "/etc"]
)
def test_nothing_without_the_token(
    node: Serving, chunk: tuple[str, bytes], authorization: str, path: str
) -> None:
    path += chunk[0] if path.endswith("/") else ""
    reply = node.ask(path, {"Authorization": authorization, "Range": f"bytes=0-{SIZE - 1}"})
    assert reply.status == 401
    assert b"token" in reply.body
    assert TOKEN.encode() not in reply.body


def test_whether_it_is_up_is_no_secret(node: Serving) -> None:
    assert node.ask("/healthz", {"Authorization": ""}).status == 200


def test_a_foreign_tenant_is_refused(node: Serving, chunk: tuple[str, bytes]) -> None:
    digest, _ = chunk
    node.chunk(digest, SIZE)
    reply = node.ask(f"/v1/chunks/other/weights/{digest}", {"Range": f"bytes=0-{SIZE - 1}"})
    assert reply.status == 403


def test_another_namespace_holds_other_chunks(node: Serving, chunk: tuple[str, bytes]) -> None:
    digest, _ = chunk
    node.chunk(digest, SIZE)
    reply = node.ask(f"/v1/chunks/default/others/{digest}", {"Range": f"bytes=0-{SIZE - 1}"})
    assert reply.status == 404


@pytest.mark.parametrize(
    "asked",
    [
        None,
        "bytes=0-",
        "bytes=-100",
        "bytes=0-9,20-29",
        "bytes=5-4",
        f"bytes=1-{SIZE}",
        f"bytes=0-{CHUNK_BYTES}",
        "bytes=0-99999999999999999999",
        "octets=0-10",
        f"bytes=0-{SIZE - 2}",
        f"bytes=0-{SIZE}",
    ],
)
def test_only_the_one_range_of_the_chunk_gives_it(
    node: Serving, chunk: tuple[str, bytes], asked: str | None
) -> None:
    digest, data = chunk
    node.chunk(digest, SIZE)
    reply = node.ask(f"/v1/chunks/default/weights/{digest}", {} if asked is None else {"Range": asked})
    assert reply.status in (400, 404)
    assert data[:64] not in reply.body


@pytest.mark.parametrize(
    "name", ["If-Range", "If-None-Match", "If-Match", "If-Modified-Since", "If-Unmodified-Since"]
)
def test_conditions_are_refused(node: Serving, chunk: tuple[str, bytes], name: str) -> None:
    digest, data = chunk
    node.chunk(digest, SIZE)
    reply = node.chunk(digest, SIZE, **{name: '"x"'})
    assert reply.status == 400
    assert data[:64] not in reply.body


def test_nothing_else_of_the_disk_can_be_reached(node: Serving, chunk: tuple[str, bytes]) -> None:
    digest, data = chunk
    node.chunk(digest, SIZE)
    inside = f"default/weights/{digest[:2]}/{digest}"
    for path in (
        f"/.share/{inside}",
        "/.blobs/0",
        "/.blobs/../../../etc/passwd",
        "/v1/chunks/default/weights/../../../../etc/passwd",
        "/v1/chunks/default/weights/%2e%2e/%2e%2e/format",
        f"/v1/chunks/../.share/{inside}",
        f"/v1/chunks/default/weights/{digest}/../{digest}x",
        f"/v1/chunks/default/weights/{digest.upper()}",
        f"/v1/chunks/default/weights/{digest}?held=1&x=2",
        f"//v1/chunks/default/weights/{digest}",
        "/proc/self/environ",
        "/",
    ):
        reply = node.ask(path, {"Range": f"bytes=0-{SIZE - 1}"})
        assert reply.status in (400, 403, 404), path
        assert data[:64] not in reply.body
        assert b"root:" not in reply.body


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "HEAD"])
def test_chunks_are_read_only(node: Serving, chunk: tuple[str, bytes], method: str) -> None:
    reply = node.ask(
        f"/v1/chunks/default/weights/{chunk[0]}", {"Range": f"bytes=0-{SIZE - 1}"}, method=method
    )
    assert reply.status == 405


def test_what_is_no_http_ends_only_its_connection(node: Serving) -> None:
    for sent in (
        b"\x16\x03\x01nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
    ):
        with socket.create_connection(("127.0.0.1", node.port), 10) as raw:
            raw.sendall(sent)
            raw.settimeout(30)
            assert b" 200 " not in raw.recv(4096)
    assert node.ask("/healthz").status == 200


def test_what_a_node_says_of_itself(node: Serving, chunk: tuple[str, bytes]) -> None:
    node.chunk(chunk[0], SIZE)
    facts = node.facts
    assert facts["name"] == node.address
    assert facts["members"] == [{"name": node.address, "address": node.address, "share_bytes": None}]
    assert facts["share"]["cap_bytes"] == 1 << 30
    assert facts["share"]["chunks"] == len(node.kept())
    assert facts["serving"]["state"] == "open"
    assert facts["serving"]["bytes"]["mirror"] >= SIZE


def test_fills_report_what_they_got(node: Serving) -> None:
    before = node.facts["tiers"]
    reply = node.ask("/v1/report", method="POST", body=b'{"peer": 70, "mirror": 7, "origin": -5}')
    assert reply.status == 200
    after = node.facts["tiers"]
    assert after["peer"] - before.get("peer", 0) == 70
    assert after["mirror"] - before.get("mirror", 0) == 7
    assert "origin" not in after
    assert node.ask("/v1/report", method="POST", body=b"[1]").status == 400
    assert node.ask("/v1/report", method="POST", body=b"x" * 100_000).status in (400, 413)


def test_metrics_are_prometheus_text(node: Serving, chunk: tuple[str, bytes]) -> None:
    node.chunk(chunk[0], SIZE)
    reply = node.ask("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = reply.body.decode().splitlines()
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}
    assert found['bdnfs_sent_bytes_total{tier="mirror"}'] >= SIZE
    assert found["bdnfs_members"] == 1
    assert found['bdnfs_serving{state="open"}'] == 1
    assert found["bdnfs_share_bytes"] == sum(path.stat().st_size for path in node.share.glob("*/*/*/*"))
    named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {name.partition("{")[0] for name in found} <= named


def test_the_share_is_its_users_alone(node: Serving, chunk: tuple[str, bytes]) -> None:
    node.chunk(chunk[0], SIZE)
    for path in (node.share, node.cache / "node", *node.share.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Serving]:
    """A node that is yet to be configured and started."""
    serving = Serving(tmp_path / "node", MirrorDirectory(tmp_path / "mirror"))
    yield serving
    serving.end()


@pytest.mark.parametrize("words", [(), ("--no-nginx",)])
def test_what_is_evicted_while_it_is_sent_arrives_whole(small: Serving, words: tuple[str, ...]) -> None:
    first, second = _dice.randbytes(CHUNK_BYTES), _dice.randbytes(CHUNK_BYTES)
    one, two = small.mirror.put(first, second)
    small.configure({"share": CHUNK_BYTES + 1000})
    small.start(*words)
    small.chunk(one, CHUNK_BYTES)
    with socket.create_connection(("127.0.0.1", small.port), 10) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.sendall(
            f"GET /v1/chunks/default/weights/{one} HTTP/1.1\r\nHost: {small.address}\r\nConnection: close\r\n"
            f"Authorization: Bearer {TOKEN}\r\nRange: bytes=0-{CHUNK_BYTES - 1}\r\n\r\n".encode()
        )
        raw.settimeout(30)
        got = bytearray(raw.recv(4096))
        small.chunk(two, CHUNK_BYTES)
        assert small.kept() == {two}
        while piece := raw.recv(1 << 20):
            got += piece
    head, _, body = bytes(got).partition(b"\r\n\r\n")
    assert b" 200 " in head
    assert body == first
    small.stop()


def test_a_full_owner_keeps_nothing_and_gives_all_the_same(small: Serving) -> None:
    data = _dice.randbytes(SIZE)
    (digest,) = small.mirror.put(data)
    small.configure({"share": 0})
    small.start()
    for _ in range(2):
        reply = small.chunk(digest, SIZE)
        assert (reply.body, reply.tier) == (data, "mirror")
    assert small.kept() == set()
    small.stop()


def test_the_cap_of_the_share_holds_and_the_least_used_goes(small: Serving) -> None:
    chunks = [_dice.randbytes(SIZE) for _ in range(8)]
    digests = small.mirror.put(*chunks)
    small.configure({"share": 3 * SIZE + 10})
    small.start()
    for digest in digests:
        small.chunk(digest, SIZE)
        small.chunk(digests[0], SIZE)  # in use all the while
        assert sum(path.stat().st_size for path in small.share.glob("*/*/*/*")) <= 3 * SIZE + 10
    assert small.kept() == {digests[0], *digests[-2:]}
    assert small.facts["share"]["used_bytes"] == 3 * SIZE
    small.stop()


def test_after_a_restart_the_share_is_found_and_hashed_before_it_is_given(small: Serving) -> None:
    chunks = [_dice.randbytes(SIZE) for _ in range(3)]
    good, bad, short = small.mirror.put(*chunks)
    small.start()
    for digest in (good, bad, short):
        small.chunk(digest, SIZE)
    small.stop()
    small.mirror.object(good).unlink()
    place = {path.name: path for path in small.share.glob("*/*/*/*")}
    place[bad].write_bytes(bytes(SIZE))
    place[short].write_bytes(chunks[2][:-1])
    junk = small.share / "default" / "weights" / good[:2] / "junk"
    junk.write_text("not a chunk")
    (small.share / "default" / "weights" / "ff" / "").mkdir(exist_ok=True)
    link = small.share / "default" / "weights" / "ff" / ("ff" + "0" * 62)
    link.symlink_to("/etc/passwd")
    (small.share / "somebody's").symlink_to("/etc")
    small.start()
    assert small.facts["share"]["chunks"] == 3
    for digest, data, tier in zip((good, bad, short), chunks, ("share", "mirror", "mirror"), strict=True):
        reply = small.chunk(digest, SIZE)
        assert (reply.body, reply.tier) == (data, tier)
    assert small.chunk(link.name, 100).status == 404
    assert not junk.exists()
    assert not link.is_symlink()
    assert not (small.share / "somebody's").is_symlink()
    assert Path("/etc/passwd").exists()
    small.stop()


def test_a_chunk_touched_in_the_share_is_hashed_again(small: Serving) -> None:
    data = _dice.randbytes(SIZE)
    (digest,) = small.mirror.put(data)
    small.start()
    small.chunk(digest, SIZE)
    (path,) = small.share.glob("*/*/*/*")
    path.write_bytes(bytes(SIZE))
    reply = small.chunk(digest, SIZE)
    assert (reply.body, reply.tier) == (data, "mirror")
    small.stop()
