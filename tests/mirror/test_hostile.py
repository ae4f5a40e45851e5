"""What a mirror says is hostile until checked; what changes upstream on the way is never mirrored."""

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio

from bdnfs.core.errors import BdnfsError, ChangedError
from bdnfs.core.progress import Counters
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.delivery.ingest import ingest_from
from bdnfs.delivery.resolve import list_snapshot
from bdnfs.mirror.directory import DirectoryStore
from bdnfs.mirror.ingest import Ingest
from bdnfs.mirror.versions import VersionRow, Versions
from bdnfs.origins.directory import DirectoryOrigin
from bdnfs.spec.source import parse_source
from bdnfs.spec.upstream import UpstreamConfig
from bdnfs.spec.volume import VolumeRef
from bdnfs.spec.weights import Weights
from bdnfs.volume.records import (
    CHUNK_TYPE,
    CHUNKMAP_TYPE,
    MANIFEST_TYPE,
    VolumeFile,
    digest_of,
    encode_manifest,
    relative_key,
)
from tests.commands.conftest import forker, hub, nodes, served
from tests.commands.node import Node

__all__ = ["forker", "hub", "nodes", "served"]

VOLUME = VolumeRef("weights", "hostile")
DATA = b"a chunk\n"
DIGEST = digest_of(DATA)
FILE = {
    "_type": "file",
    "_kind": "chunk",
    "chunk": {
        "digest": DIGEST,
        "length": len(DATA),
        "offset": 0,
        "target": {"relative_key": relative_key(DIGEST)},
    },
    "mode": "0444",
    "path": "config.json",
}
LINK = {"_type": "symlink", "mode": "0777", "path": "link", "target": "config.json"}


def lines(*records: dict[str, object], files: int = 1, size: int = len(DATA)) -> bytes:
    """Return a manifest, with a header that fits unless the test says otherwise."""
    header = {"_type": "manifest_header", "entry_count": files, "manifest_schema": "v1", "total_size": size}
    return b"".join(msgspec.json.encode(record) + b"\n" for record in (header, *records))


def publish(place: Path, manifest: bytes) -> str:
    """Put a version there as somebody would who can write to the mirror; return its ref."""
    versions = Versions(DirectoryStore(str(place)), "default")
    contents = versions.contents(VOLUME.namespace)
    contents.put(DIGEST, DATA, CHUNK_TYPE)
    contents.put(digest_of(manifest), manifest, MANIFEST_TYPE)
    row = VersionRow(
        namespace=VOLUME.namespace,
        volume=VOLUME.volume,
        digest=digest_of(manifest),
        listing=DIGEST,
        source="hf://acme/hostile",
        revision="1" * 40,
        patterns="",
        branch=None,
        sequence=1,
        created_s=0.0,
        files=1,
        size=len(DATA),
    )
    key = f"volumes/default/weights/hostile/versions/{row.digest[3:]}.json"
    versions.store.put(key, msgspec.json.encode(row), "application/json", "any")
    versions.store.close()
    return str(row.ref)


HOSTILE = {
    "escaping": (lines(FILE | {"path": "../../etc/passwd"}), "path that can't be in a tree"),
    "dot": (lines(FILE | {"path": "a/./b"}), "path that can't be in a tree"),
    "twice": (lines(FILE, FILE, files=2, size=2 * len(DATA)), "twice"),
    "file-and-directory": (
        lines(FILE, FILE | {"path": "config.json/x"}, files=2, size=2 * len(DATA)),
        "both as a file and as a directory",
    ),
    "link-out": (lines(FILE, LINK | {"target": "../outside"}, files=2), "leaves the tree"),
    "link-loop": (
        lines(FILE, LINK | {"target": "other"}, LINK | {"path": "other", "target": "link"}, files=3),
        "loop",
    ),
    "wrong-total": (lines(FILE, size=7), "total_size"),
    "wrong-count": (lines(FILE, files=2), "entry_count"),
    "two-headers": (lines(msgspec.json.decode(lines().strip()), FILE), "two headers"),
    "no-header": (msgspec.json.encode(FILE), "no header"),
    "slabmap": (lines(FILE | {"_kind": "slabmap"}), "slabmap"),
    "elsewhere": (
        lines(FILE | {"chunk": FILE["chunk"] | {"target": {"relative_key": "objects/b3/../../../secret"}}}),  # type: ignore[operator]
        "puts",
    ),
    "huge": (
        lines(
            FILE["chunk"]  # type: ignore[operator]
            | {"_type": "file", "_kind": "chunkmap", "mode": "0444", "path": "a", "size": 1 << 62},
            size=1 << 62,
        ),
        "which no file has",
    ),
    "long-chunk": (
        lines(FILE | {"chunk": FILE["chunk"] | {"length": 20 << 20}}, size=20 << 20),  # type: ignore[operator]
        "is the most a chunk has",
    ),
    "no-json": (lines(FILE) + b"\xff\xfe\n", "is no record"),
    "deep": (lines(FILE) + b'{"a":' * 5000 + b"\n", "is no record"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused(nodes: Callable[..., Node], tmp_path: Path, name: str) -> None:
    manifest, said = HOSTILE[name]
    node = nodes()
    node.configure(mirror=str(tmp_path / "mirror"))
    ref = publish(tmp_path / "mirror", manifest)
    done = node.start("mount", ref, node.m).wait(None)
    assert done.code in (5, 6), done
    assert said in done.err
    assert not node.mounts()
    assert not list((node.cache / "blobs").glob("*/*"))
    if name != "huge":
        assert said in node.run("mirror", "verify", code=6).err


def test_links_to_files_are_files(nodes: Callable[..., Node], tmp_path: Path) -> None:
    node = nodes()
    node.configure(mirror=str(tmp_path / "mirror"))
    node.run("mount", publish(tmp_path / "mirror", lines(FILE, LINK, files=2)), node.m)
    node.holds({"config.json": DATA, "link": DATA})
    node.run("unmount", node.m)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([(0, CHUNK_BYTES), (4, CHUNK_BYTES)], "an offset"),  # overlapping
        ([(0, CHUNK_BYTES)], "the sum of its chunks"),
        ([(0, CHUNK_BYTES), (CHUNK_BYTES + 1, CHUNK_BYTES - 1)], "an offset"),
        ([(0, 8), (8, 2 * CHUNK_BYTES - 8)], "is the most a chunk has"),
        ([(0, 8), (8, CHUNK_BYTES), (8 + CHUNK_BYTES, CHUNK_BYTES - 8)], "before the last"),
        ([(0, CHUNK_BYTES), (CHUNK_BYTES, 0), (CHUNK_BYTES, CHUNK_BYTES)], "an empty chunk"),
    ],
)
def test_a_hostile_chunkmap_is_refused(
    nodes: Callable[..., Node], tmp_path: Path, records: list[tuple[int, int]], said: str
) -> None:
    node = nodes()
    node.configure(mirror=str(tmp_path / "mirror"))
    chunks = [
        FILE["chunk"] | {"_type": "chunk", "offset": offset, "length": length}  # type: ignore[operator]
        for offset, length in records
    ]
    header = {"_type": "chunkmap_header", "chunk_count": len(chunks), "file_size": 2 * CHUNK_BYTES}
    chunkmap = b"".join(msgspec.json.encode(each) + b"\n" for each in (header, *chunks))
    digest = digest_of(chunkmap)
    file = {
        "_type": "file", "_kind": "chunkmap", "digest": digest, "mode": "0444", "path": "model.bin",
        "size": 2 * CHUNK_BYTES, "target": {"relative_key": relative_key(digest)},
    }  # fmt: skip
    ref = publish(tmp_path / "mirror", lines(file, size=2 * CHUNK_BYTES))
    store = DirectoryStore(str(tmp_path / "mirror"))
    store.put(f"bdn/default/weights/{relative_key(digest)}", chunkmap, CHUNKMAP_TYPE, "any")
    done = node.start("mount", ref, node.m).wait(None)
    assert done.code == 6, done
    assert said in done.err
    assert not node.mounts()


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_manifest_of_very_many_entries(tmp_path: Path, count: int) -> None:
    files = [VolumeFile(f"d{n % 97}/f{n:07}", len(DATA), chunk=DIGEST) for n in range(count)]
    manifest = encode_manifest(files, {})
    publish(tmp_path / "mirror", manifest)
    versions = Versions(DirectoryStore(str(tmp_path / "mirror")), "default")
    found = versions.contents(VOLUME.namespace).manifest(digest_of(manifest))
    assert len(found.files) == count
    assert found.total_size == count * len(DATA)


# -- upstream --------------------------------------------------------------------------------------


def ingest_of(place: Path, source: Path, change: Callable[[], None]) -> tuple[Versions, BdnfsError | None]:
    """Mirror a directory that changes between its listing and its reading."""
    versions = Versions(DirectoryStore(str(place)), "default")
    origin = DirectoryOrigin(str(source))
    weights = Weights(parse_source(f"file://{source}"), "m")
    listing = list_snapshot(origin, weights, None, lambda _: None)
    change()
    ingest = Ingest(versions, VOLUME, listing, None, "")
    try:
        trio.run(ingest_from, ingest, origin, UpstreamConfig(attempts=2, stall_s=5), Counters())
    except BdnfsError as error:
        return versions, error
    return versions, None


def test_what_changes_between_listing_and_reading_is_not_mirrored(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "mirror").mkdir()  # the change may be met before anything is put
    content = random.Random(3).randbytes(9 << 20)
    (source / "a.bin").write_bytes(content)
    (source / "b.bin").write_bytes(content[::-1])

    def change() -> None:
        (source / "b.bin").write_bytes(content[:-1] + b"!")

    versions, error = ingest_of(tmp_path / "mirror", source, change)
    assert isinstance(error, ChangedError)
    assert list(versions.all()) == []
    versions, error = ingest_of(tmp_path / "mirror", source, lambda: None)
    assert error is None
    assert [row.files for row in versions.all()] == [2]
