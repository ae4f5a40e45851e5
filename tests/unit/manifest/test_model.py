import msgspec
import pytest

from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.manifest.model import FileEntry, Manifest


def manifest(*files: FileEntry) -> Manifest:
    return Manifest("hf://o/r", "http://hub o/r", "a" * 40, files)


def test_the_total_is_the_sum_of_its_files() -> None:
    assert manifest().total_bytes == 0
    assert manifest(FileEntry("a", 3), FileEntry("b", 0), FileEntry("c", 4)).total_bytes == 7


def test_a_file_knows_its_chunks() -> None:
    assert [FileEntry("a", size).chunks for size in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1)] == [0, 1, 1, 2]


def test_nothing_in_a_manifest_changes() -> None:
    entry = FileEntry("a", 3)
    with pytest.raises(AttributeError):
        entry.size = 4  # type: ignore[misc]


def test_a_manifest_survives_its_encoding() -> None:
    whole = manifest(FileEntry("a/b", 3, "sha256:00", "etag", ranged=False), FileEntry("c", 0))
    # Reading the total first: what is computed must not become part of what is stored.
    assert whole.total_bytes == 3
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(whole), type=Manifest) == whole
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Manifest) == whole
