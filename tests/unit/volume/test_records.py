"""The BDN volume format: the same content gives the same bytes, and nothing else is read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import IntegrityError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.volume.records import (
    StoredChunk,
    VolumeFile,
    decode_chunkmap,
    decode_manifest,
    digest_of,
    encode_chunkmap,
    encode_manifest,
    object_key,
)

EMPTY = "b3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"  # as BLAKE3's authors give it
A, B = digest_of(b"a"), digest_of(b"b")
FILES = (
    VolumeFile("model.safetensors", 2 * CHUNK_BYTES + 5, chunkmap=B),
    VolumeFile("sub/a", 1, chunk=A),
    VolumeFile("sub-a", 1, chunk=A),
    VolumeFile("empty", 0, chunk=EMPTY),
)
PROVENANCE = {"source": "hf://org/model", "revision": "1" * 40}


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def joined(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_the_digest_of_nothing() -> None:
    assert digest_of(b"") == EMPTY
    assert object_key("acme", "qwen", EMPTY) == f"bdn/acme/qwen/objects/b3/af/13/{EMPTY[3:]}"


def test_the_canonical_bytes() -> None:
    """Minified, keys sorted after _type and _kind, in path order with `/` below every other byte."""
    first, second, *rest = encode_manifest(FILES, PROVENANCE).decode().splitlines()
    assert first == (
        '{"_type":"manifest_header","entry_count":5,"manifest_schema":"v1","total_size":16777223}'
    )
    assert second == '{"_type":"provenance","revision":"' + "1" * 40 + '","source":"hf://org/model"}'
    assert [json.loads(line)["path"] for line in rest] == [
        "empty",
        "model.safetensors",
        "sub",
        "sub/a",
        "sub-a",
    ]
    assert rest[2] == '{"_type":"directory","mode":"0555","path":"sub"}'
    assert rest[3] == (
        f'{{"_type":"file","_kind":"chunk","chunk":{{"digest":"{A}","length":1,"offset":0,'
        f'"target":{{"relative_key":"objects/b3/{A[3:5]}/{A[5:7]}/{A[3:]}"}}}},"mode":"0444","path":"sub/a"}}'
    )
    for line in rest:
        keys = [key for key in json.loads(line) if not key.startswith("_")]
        assert keys == sorted(keys)
    assert encode_manifest(FILES[::-1], dict(reversed(PROVENANCE.items()))) == encode_manifest(
        FILES, PROVENANCE
    )


def test_what_was_written_is_read() -> None:
    version = decode_manifest(encode_manifest(FILES, PROVENANCE), "here")
    assert set(version.files) == set(FILES)
    assert version.directories == ("sub",)
    assert version.provenance == PROVENANCE
    assert version.total_size == 2 * CHUNK_BYTES + 7


names = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\x7f"), min_size=1, max_size=40
)
paths = st.lists(names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4).map("/".join)


@given(st.dictionaries(paths, st.integers(0, 3 * CHUNK_BYTES), max_size=20))
def test_any_tree_survives(sizes: dict[str, int]) -> None:
    directories = {parent for path in sizes for parent in parents(path)}
    files = [
        VolumeFile(path, size, chunk=A) if size <= CHUNK_BYTES else VolumeFile(path, size, chunkmap=B)
        for path, size in sizes.items()
        if path not in directories
    ]
    version = decode_manifest(encode_manifest(files, {}), "here")
    assert sorted(version.files) == sorted(files)
    assert set(version.directories) == {parent for file in files for parent in parents(file.path)}


def parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


@given(st.integers(0, 5 * CHUNK_BYTES))
def test_any_chunkmap_survives(size: int) -> None:
    chunks = [
        StoredChunk(digest_of(b"%d" % start), start, min(CHUNK_BYTES, size - start))
        for start in range(0, size, CHUNK_BYTES)
    ]
    assert decode_chunkmap(encode_chunkmap(chunks), size, "here") == chunks


def changed(record: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {key: value for key, value in (record | fields).items() if value is not None}


HEADER, PROVIDED, *ENTRIES = lines(encode_manifest(FILES, PROVENANCE))
EMPTY_FILE, MODEL, SUB, SUB_A, _ = ENTRIES
LINK = {"_type": "symlink", "mode": "0777", "path": "link", "target": "sub/a"}


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "no header"),
        (ENTRIES, "no header"),
        ([HEADER, HEADER, *ENTRIES], "two headers"),
        ([changed(HEADER, manifest_schema="v2"), *ENTRIES], "schema 'v2'"),
        ([changed(HEADER, entry_count=4), *ENTRIES], "entry_count"),
        ([changed(HEADER, entry_count=True), *ENTRIES], "entry_count"),
        ([changed(HEADER, total_size=1), *ENTRIES], "total_size"),
        ([HEADER, *ENTRIES, EMPTY_FILE], "entry_count"),
        ([changed(HEADER, entry_count=6), *ENTRIES, EMPTY_FILE], "'empty' twice"),
        ([HEADER, {"_type": "surprise"}], "unknown type 'surprise'"),
        ([HEADER, changed(EMPTY_FILE, _kind="slabmap")], "kind 'slabmap'"),
        ([HEADER, changed(EMPTY_FILE, path="../out")], "'..'"),
        ([HEADER, changed(EMPTY_FILE, path="a//b")], "''"),
        ([HEADER, changed(EMPTY_FILE, path="")], "''"),
        ([HEADER, changed(EMPTY_FILE, path=7)], "7 for path"),
        ([HEADER, changed(EMPTY_FILE, mode="rw")], "mode 'rw'"),
        ([HEADER, changed(EMPTY_FILE, mtime="yesterday")], "mtime 'yesterday'"),
        ([HEADER, changed(EMPTY_FILE, chunk=None)], "None for chunk"),
        ([HEADER, changed(EMPTY_FILE, chunk=EMPTY_FILE["chunk"] | {"offset": 1})], "begins at 1"),
        ([HEADER, changed(EMPTY_FILE, chunk=EMPTY_FILE["chunk"] | {"length": -1})], "-1 for length"),
        ([HEADER, changed(EMPTY_FILE, chunk=EMPTY_FILE["chunk"] | {"digest": "b3:00"})], "digest 'b3:00'"),
        ([HEADER, changed(MODEL, size=1.5)], "1.5 for size"),
        ([HEADER, changed(MODEL, target={"relative_key": "objects/../../secret"})], "secret"),
        ([HEADER, changed(MODEL, target=EMPTY_FILE["chunk"]["target"])], "puts b3:"),
        ([changed(HEADER, entry_count=2, total_size=1), SUB_A, changed(EMPTY_FILE, path="sub/a/b")], "both as a file"),
        ([changed(HEADER, entry_count=2, total_size=1), SUB_A, changed(SUB, path="sub/a")], "both a directory"),
        ([changed(HEADER, entry_count=2, total_size=0), LINK, changed(EMPTY_FILE, path="link/x")], "both as a file"),
        ([HEADER, changed(LINK, target="../out")], None),
        ([changed(HEADER, entry_count=1, total_size=0), changed(LINK, target="../out")], "leaves the tree"),
        ([changed(HEADER, entry_count=1, total_size=0), changed(LINK, target="")], "leads to ''"),
        ([changed(HEADER, entry_count=1, total_size=0), changed(LINK, target="link")], "loop"),
    ],
)  # fmt: skip
def test_what_is_not_the_format_is_refused(records: list[dict[str, Any]], says: str | None) -> None:
    with pytest.raises(IntegrityError) as caught:
        decode_manifest(joined(records), "bdn:acme/hostile")
    assert str(caught.value).startswith("bdn:acme/hostile")
    assert says is None or says in str(caught.value)


def linked(targets: dict[str, str]) -> bytes:
    records = [changed(LINK, path=path, target=target) for path, target in targets.items()]
    return joined([changed(HEADER, entry_count=len(records), total_size=0), *records])


def test_links_are_walked_as_the_kernel_does() -> None:
    inside = {"a": "b", "b": "dir/c", "dir/up": "..", "x": "dir/up/a", "root": "/", "y": "root/dir/../a"}
    assert len(decode_manifest(linked(inside), "here").links) == 6
    # Spelled harmlessly; but `dir/up` is the root, and above it is outside.
    for targets in ({"dir/up": "..", "x": "dir/up/../etc"}, {"deep/in/link": "../../..", "z": "a/../.."}):
        with pytest.raises(IntegrityError, match="leaves the tree"):
            decode_manifest(linked(targets), "here")
    # Forty in a row are followed, no more; and a hostile tree of them takes no time.
    chain = {f"l{number}": f"l{number + 1}" for number in range(39)}
    decode_manifest(linked(chain | {"l39": "end"}), "here")
    with pytest.raises(IntegrityError, match="more than 40"):
        decode_manifest(linked(chain | {"l39": "l40", "l40": "end"}), "here")
    with pytest.raises(IntegrityError, match="more than 40"):
        decode_manifest(linked({f"l{n}": f"l{n + 1}/../l{n + 1}" for n in range(60)}), "here")


CHUNKMAP = lines(encode_chunkmap([StoredChunk(A, 0, CHUNK_BYTES), StoredChunk(B, CHUNK_BYTES, 5)]))


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (CHUNKMAP[1:], "no header"),
        ([CHUNKMAP[0], *CHUNKMAP], "two headers"),
        (CHUNKMAP[:2], "chunk_count"),
        ([changed(CHUNKMAP[0], file_size=3), *CHUNKMAP[1:]], "file_size"),
        ([CHUNKMAP[0], CHUNKMAP[2], CHUNKMAP[1]], "an offset"),
        ([CHUNKMAP[0], CHUNKMAP[1], changed(CHUNKMAP[2], offset=CHUNK_BYTES - 1)], "an offset"),
        ([CHUNKMAP[0], CHUNKMAP[1], changed(CHUNKMAP[2], length=6)], "the sum"),
        ([CHUNKMAP[0], changed(CHUNKMAP[1], length=5), changed(CHUNKMAP[2], offset=5)], "before the last"),
        ([CHUNKMAP[0], {"_type": "file"}], "unknown type 'file'"),
    ],
)
def test_a_chunkmap_that_is_none_is_refused(records: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(IntegrityError, match=says):
        decode_chunkmap(joined(records), CHUNK_BYTES + 5, "here")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_are_more_than_an_integrity_error(data: bytes) -> None:
    for read in (lambda: decode_manifest(data, "here"), lambda: decode_chunkmap(data, 5, "here")):
        with pytest.raises(IntegrityError):
            read()
