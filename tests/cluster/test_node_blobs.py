"""Chunks that a node has in its blobs: given from there, and never what only looks like one."""

import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from bdnfs.cache.locks import try_lock
from bdnfs.cache.node import NodeCache
from bdnfs.cache.share import ShareKey
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.serve.node.asked import Asked
from bdnfs.serve.node.blobs import Blobs
from bdnfs.volume.digests import content_digest
from tests.cluster.serving import TOKEN, MirrorDirectory, Serving, until
from tests.unit.cache.stocked import admit, fill, manifest_of, open_cache, write_chunk

LAST = 200_000
DATA = random.Random(7).randbytes(CHUNK_BYTES + LAST)
FILES = {"model.safetensors": DATA}
CHUNKS = [DATA[:CHUNK_BYTES], DATA[CHUNK_BYTES:]]
FIRST, SECOND = [blake3(chunk).hexdigest() for chunk in CHUNKS]
NAME = content_digest(len(DATA), [blake3(chunk).digest() for chunk in CHUNKS])


both = pytest.mark.parametrize("node", [(), ("--no-nginx",)], ids=["nginx", "alone"], indirect=True)


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    """A node whose mirror has nothing."""
    serving = Serving(tmp_path / "node", MirrorDirectory(tmp_path / "mirror"))
    serving.start(*getattr(request, "param", ()))
    yield serving
    serving.end()


@pytest.fixture
def cache(node: Serving) -> Iterator[NodeCache]:
    """The node's cache, as another process of this machine has it."""
    opened = open_cache(node.cache)
    yield opened
    opened.close()


def blob_file(node: Serving) -> Path:
    (path,) = (node.cache / "blobs").glob("*/*")
    return path


@both
def test_chunks_of_a_whole_blob_are_found_by_its_content(node: Serving, cache: NodeCache) -> None:
    snapshot, pin = admit(cache, manifest_of(FILES))
    fill(cache, snapshot, FILES)
    pin.close()
    second = node.chunk(SECOND, LAST, CHUNK_BYTES, Bdnfs_File=NAME)
    assert (second.status, second.body, second.tier) == (206, CHUNKS[1], "node")
    assert second.headers["content-range"] == f"bytes {CHUNK_BYTES}-{len(DATA) - 1}/{len(DATA)}"
    first = node.chunk(FIRST, CHUNK_BYTES, Bdnfs_File=NAME, held=True)
    assert (first.status, first.body, first.tier) == (206, CHUNKS[0], "node")
    assert first.headers["content-length"] == str(CHUNK_BYTES)
    assert node.kept() == set()

    # Another range than the chunk's, another chunk's digest, no such content: nothing.
    assert node.chunk(SECOND, LAST - 1, CHUNK_BYTES, Bdnfs_File=NAME).status == 404
    assert node.chunk(SECOND, LAST, 0, Bdnfs_File=NAME).status == 404
    assert node.chunk(FIRST, LAST, CHUNK_BYTES, Bdnfs_File=NAME).status == 404
    assert node.chunk(FIRST, CHUNK_BYTES, Bdnfs_File="b3map:" + "0" * 64).status == 404
    assert node.chunk(FIRST, CHUNK_BYTES, Bdnfs_File="sha256:" + "0" * 64).status == 400
    assert node.chunk(FIRST, CHUNK_BYTES, Bdnfs_File=NAME, If_Range='"x"').status == 400

    # What was written to since it was sealed is nothing either, and a hole least of all.
    path = blob_file(node)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(0)
        file.truncate(len(DATA))
    assert node.chunk(FIRST, CHUNK_BYTES, Bdnfs_File=NAME).status == 404
    node.stop()


def test_a_blob_that_is_being_filled_gives_what_it_has_and_no_hole(node: Serving, cache: NodeCache) -> None:
    snapshot, pin = admit(cache, manifest_of(FILES))
    record = cache.record(snapshot)
    assert record is not None
    (blob,) = record.blobs
    write_chunk(cache, blob, DATA, 1)
    named = {"Bdnfs_Blob": blob.hex(), "Bdnfs_File": NAME}
    reply = node.chunk(SECOND, LAST, CHUNK_BYTES, held=True, **named)
    assert (reply.status, reply.body, reply.tier) == (206, CHUNKS[1], "node")
    # The other chunk is a hole yet, whatever is asked for.
    for digest in (FIRST, blake3(bytes(CHUNK_BYTES)).hexdigest()):
        assert node.chunk(digest, CHUNK_BYTES, **named).status == 404
    # Its writer has died: who knows what has reached the disk?
    pin.close()
    cache.close()
    assert node.chunk(SECOND, LAST, CHUNK_BYTES, **named).status == 404
    node.stop()


def test_a_window_is_never_given(node: Serving, cache: NodeCache) -> None:
    snapshot, pin = admit(cache, manifest_of(FILES), window=True)
    record = cache.record(snapshot)
    assert record is not None
    write_chunk(cache, record.blobs[0], DATA, 1)
    whole, other = admit(cache, manifest_of(FILES))
    usual = cache.record(whole)
    assert usual is not None
    assert usual.blobs != record.blobs
    named = {"Bdnfs_Blob": usual.blobs[0].hex(), "Bdnfs_File": NAME}
    assert node.chunk(SECOND, LAST, CHUNK_BYTES, **named).status == 404
    pin.close()
    other.close()
    node.stop()


@both
def test_a_blob_that_is_evicted_while_it_is_sent_arrives_whole(node: Serving, cache: NodeCache) -> None:
    snapshot, pin = admit(cache, manifest_of(FILES))
    fill(cache, snapshot, FILES)
    pin.close()
    with socket.create_connection(("127.0.0.1", node.port), 10) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.sendall(
            f"GET /v1/chunks/default/weights/{FIRST} HTTP/1.1\r\nHost: {node.address}\r\nConnection: close\r\n"
            f"Authorization: Bearer {TOKEN}\r\nRange: bytes=0-{CHUNK_BYTES - 1}\r\nBdnfs-File: {NAME}\r\n\r\n".encode()
        )
        raw.settimeout(30)
        got = bytearray(raw.recv(4096))
        cache.evict(unused_since_s=4e9, dry_run=False)
        assert list((node.cache / "blobs").glob("*/*")) == []
        # Another file in its place: sparse, as one that is about to be filled.
        again, pin = admit(cache, manifest_of(FILES))
        record = cache.record(again)
        assert record is not None
        cache.open_blob(record.blobs[0], len(DATA)).close()
        while piece := raw.recv(1 << 20):
            got += piece
    head, _, body = bytes(got).partition(b"\r\n\r\n")
    assert b" 206 " in head
    assert body == CHUNKS[0]
    assert node.chunk(FIRST, CHUNK_BYTES, Bdnfs_File=NAME).status == 404
    pin.close()
    node.stop()


def test_what_the_node_has_in_a_blob_is_kept_once(node: Serving, cache: NodeCache) -> None:
    node.mirror.put(*CHUNKS)
    assert node.chunk(FIRST, CHUNK_BYTES, Bdnfs_File=NAME).tier == "mirror"
    assert node.chunk(SECOND, LAST, CHUNK_BYTES).tier == "mirror"
    snapshot, pin = admit(cache, manifest_of(FILES))
    fill(cache, snapshot, FILES)
    # The second was never asked for by its file, so nobody knows that it is there.
    until(lambda: node.kept() == {SECOND}, "the share to let the first go")
    assert node.chunk(FIRST, CHUNK_BYTES, Bdnfs_File=NAME).tier == "node"
    pin.close()
    node.stop()


def test_files_are_let_go_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(tmp_path)
    snapshot, pin = admit(cache, manifest_of(FILES))
    fill(cache, snapshot, FILES)
    pin.close()
    held = Blobs(cache, "")
    asked = Asked(ShareKey("default", "weights", FIRST), 0, CHUNK_BYTES, NAME, None, "", held=False)
    found = held.find(asked)
    assert found is not None
    held.let_go()
    assert os.pread(found.fd, 100, 0) == DATA[:100]
    # Nobody may write the chunk anew meanwhile.
    (path,) = (tmp_path / "blobs").glob("*/*")
    path.chmod(0o600)
    fd = os.open(path, os.O_RDWR)
    assert not try_lock(fd, exclusive=True, start=0, length=CHUNK_BYTES)
    assert try_lock(fd, exclusive=True, start=CHUNK_BYTES, length=CHUNK_BYTES)
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    held.let_go()
    assert try_lock(fd, exclusive=True, start=0, length=CHUNK_BYTES)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(found.fd)
    held.close()
    cache.close()
