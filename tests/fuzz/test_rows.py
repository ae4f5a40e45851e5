"""What lies in the cache directory: index rows, snapshots' records, records of mounts, directories made."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.cache.index import TABLES
from bdnfs.cache.layout import Layout
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.opening import open_index, release
from bdnfs.cache.records import read_record, snapshot_id, write_record
from bdnfs.cache.rows import BlobRow, ChunkRow, ChunkState, Record, SnapshotRow
from bdnfs.core.errors import BdnfsError, CacheError
from bdnfs.manifest.model import FileEntry, Manifest
from bdnfs.session.directories import sweep
from bdnfs.session.records import Mounted, MountRecord, RecordDirectory, record_directories
from tests.fuzz.judging import FUZZ, judged
from tests.fuzz.mutations import SCALARS, VALUES, mutated

BLOB = bytes(range(32))
NATURAL = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def encoded(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return b"\xc1"


# Nearly right rows, rows of wrong types, and bytes that are no msgpack at all.
ROWS = (
    mutated(
        [
            msgspec.msgpack.encode(BlobRow(9, 9, 9, True, 1, 2, ("sha256:" + "a" * 64,))),
            msgspec.msgpack.encode(SnapshotRow("hf://o/r", "a" * 40, 3, 9, True, 1.0, 2.0)),
            ChunkRow(ChunkState.SYNCED, b"w" * 8, b"d" * 32).pack(),
            b"4096",
            ("a" * 64).encode(),
        ]
    )
    | st.lists(SCALARS, max_size=14).map(encoded)
    | VALUES.map(encoded)
)


class Rows:
    """A transaction over plain dicts."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLES}

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.tables[table].get(key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.tables[table][key] = value

    def delete(self, table: str, key: bytes) -> bool:
        return self.tables[table].pop(key, None) is not None

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        yield from sorted(item for item in self.tables[table].items() if item[0].startswith(prefix))


def read_everything(ledger: Ledger, key: bytes) -> None:
    """Read as every caller does."""
    list(ledger.snapshots())
    list(ledger.blobs())
    list(ledger.chunks(BLOB))
    assert ledger.charged_bytes + ledger.present_bytes is not None
    ledger.selected(key)
    ledger.alias("sha256:x")
    ledger.graves()


@FUZZ
@given(data=ROWS, table=st.sampled_from(TABLES), key=st.binary(min_size=1, max_size=70))
def test_any_row_is_a_value_or_a_cache_error(data: bytes, table: str, key: bytes) -> None:
    rows = Rows()
    known = {"meta": b"charged_bytes", "chunks": BLOB + bytes(4), "blobs": BLOB, "snapshots": b"a" * 64}
    for each in (key, known.get(table, key)):
        rows.tables[table][each] = data
    found = judged(lambda: read_everything(Ledger(rows), key))  # type: ignore[arg-type]
    assert found is None or isinstance(found, CacheError)


@FUZZ
@given(
    row=st.builds(
        BlobRow, NATURAL, NATURAL, NATURAL, st.booleans(), NATURAL, NATURAL, st.lists(TEXT).map(tuple)
    )
)
def test_a_blobs_row_reads_back(row: BlobRow) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(row), type=BlobRow) == row


@FUZZ
@given(
    state=st.sampled_from(ChunkState),
    writer=st.binary(min_size=8, max_size=8),
    digest=st.binary(min_size=32, max_size=32),
)
def test_a_chunks_row_reads_back(state: ChunkState, writer: bytes, digest: bytes) -> None:
    row = ChunkRow(state, writer, digest)
    assert ChunkRow.unpack(row.pack()) == row


@pytest.mark.parametrize("cut", range(41))
def test_a_chunks_row_that_was_cut_off_is_damaged(cut: int) -> None:
    rows = Rows()
    rows.put("chunks", BLOB + bytes(4), ChunkRow(ChunkState.SYNCED, b"w" * 8, b"d" * 32).pack()[:cut])
    with pytest.raises(CacheError, match="damaged"):
        Ledger(rows).chunk(BLOB, 0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    made = Layout(tmp_path_factory.mktemp("cache"))
    made.prepare()
    return made


def test_an_index_with_a_damaged_text_says_so_and_is_marked_for_a_rebuild(tmp_path: Path) -> None:
    """A flipped bit in a text is no UTF-8 any more: that is damage, too."""
    row = bytearray(msgspec.msgpack.encode(SnapshotRow("hf://o/r", "a" * 40, 3, 9, True, 1.0, 2.0)))
    row[row.index(b"hf://")] ^= 0x80
    Layout(tmp_path).prepare()
    index = open_index(tmp_path)
    try:
        with index.write() as txn:
            txn.put("snapshots", b"a" * 64, bytes(row))
        with pytest.raises(CacheError, match="broken"), index.read() as txn:
            list(Ledger(txn).snapshots())
        assert (tmp_path / "index.broken").exists()
    finally:
        release(index)


ENTRY = st.builds(FileEntry, TEXT, NATURAL, st.none() | TEXT, TEXT, st.booleans())
MANIFEST = st.builds(Manifest, TEXT, TEXT, TEXT, st.lists(ENTRY, max_size=4).map(tuple))


@FUZZ
@given(manifest=MANIFEST, texts=st.tuples(TEXT, st.none() | TEXT, TEXT))
def test_a_record_reads_back(layout: Layout, manifest: Manifest, texts: tuple[str, str | None, str]) -> None:
    record = Record(manifest, tuple(secrets.token_bytes(32) for _ in manifest.files), *texts)
    name = snapshot_id(manifest)
    write_record(layout, name, record)
    assert read_record(layout, name) == record


RECORD = msgspec.msgpack.encode(
    Record(Manifest("hf://o/r", "http://h hf://o/r", "a" * 40, (FileEntry("a/b", 9, "sha256:x"),)), (BLOB,))
)


@FUZZ
@given(body=mutated([RECORD]) | VALUES.map(encoded), summed=st.booleans())
def test_any_file_is_a_record_or_none(layout: Layout, body: bytes, summed: bool) -> None:
    """Also where the checksum is right, as whoever can write there can make it."""
    path = layout.snapshots / "fuzzed"
    path.write_bytes(body + blake3(body).digest() if summed else body)
    found = judged(lambda: read_record(layout, "fuzzed"))
    assert found is None or isinstance(found, Record)
    assert summed or found is None or body == RECORD + blake3(RECORD).digest()


MOUNT = msgspec.json.encode(
    MountRecord("0a1b", "fuse", 1.0, (Mounted("/m", "hf://o/r", "a" * 40, "b" * 64),))
)
MADE = b'{"location": "/no/such/place/m", "made": ["/no/such/place", "/no/such/place/m"]}'


@FUZZ
@given(content=mutated([MOUNT]) | VALUES.map(msgspec.json.encode))
def test_any_file_is_a_mounts_record_or_none(layout: Layout, content: bytes) -> None:
    directory = layout.mounts / "0a1b2c3d4e5f"
    directory.mkdir(exist_ok=True)
    (directory / "record.json").write_bytes(content)
    (found,) = record_directories(layout)
    record = judged(found.read)
    assert record is None or isinstance(record, MountRecord)


@FUZZ
@given(content=mutated([MADE]))
def test_any_file_of_directories_made_removes_nothing_else(
    layout: Layout, tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    kept = layout.root / "kept"
    kept.mkdir(exist_ok=True)
    (kept / "file").touch()
    (layout.mounts / "0.made").write_bytes(content.replace(b"/no/such/place/m", bytes(kept / "file")))
    found = judged(lambda: sweep(layout))
    assert found is None or isinstance(found, BdnfsError)
    assert (kept / "file").exists()


def test_reading_a_record_directory_needs_no_record(layout: Layout) -> None:
    assert RecordDirectory(layout.mounts / "none").read() is None
