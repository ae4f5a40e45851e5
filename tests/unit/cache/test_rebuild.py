"""A lost index is made again from records and blobs; nothing that can't be checked is believed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import CacheError
from bdnfs.core.units import MIB
from tests.unit.cache.stocked import (
    FEW,
    SELECTION,
    TWO_CHUNKS,
    admit,
    check_books,
    content,
    disk_bytes,
    fill,
    finished,
    kill,
    line_of,
    manifest_of,
    open_cache,
    orphans,
    python,
    shown,
    stock,
    write_chunk,
)

Opened = Callable[..., NodeCache]


def lose_index(directory: Path) -> None:
    (directory / "index.lmdb").unlink()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_whole_snapshots_stand_again_without_a_byte_from_upstream(directory: Path, opened: Opened) -> None:
    cache = open_cache(directory)
    first = stock(cache, FEW, "1" * 40)
    second = stock(cache, {"two.bin": TWO_CHUNKS, "model.bin": FEW["model.bin"]}, "2" * 40)
    before = cache.usage()
    inode = cache.layout.tree(first).stat().st_ino
    cache.close()
    lose_index(directory)
    cache = opened()
    assert cache.usage() == before or cache.usage().present_bytes == before.present_bytes
    assert cache.snapshot_of(SELECTION, "1" * 40) == first
    assert cache.last_revision(SELECTION, "main") == "2" * 40
    tree = cache.whole_tree(first)
    assert tree is not None
    assert shown(tree) == FEW
    assert tree.stat().st_ino == inode
    assert cache.whole_tree(second) is not None
    check_books(cache)
    assert not orphans(cache)


def test_what_has_no_digest_or_a_wrong_one_is_fetched_again(directory: Path, opened: Opened) -> None:
    cache = open_cache(directory)
    bad = stock(cache, FEW, "1" * 40)
    snapshot, pin = admit(cache, manifest_of({"x": content("plain", MIB)}, "2" * 40, digests=False))
    fill(cache, snapshot, {"x": content("plain", MIB)})
    pin.close()
    tree = cache.whole_tree(bad)
    assert tree is not None
    status = (tree / "model.bin").stat()
    with (tree / "model.bin").open("r+b") as file:
        file.write(b"damage")
    os.utime(tree / "model.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
    cache.close()
    lose_index(directory)
    cache = opened()
    assert cache.whole_tree(bad) is None
    assert cache.whole_tree(snapshot) is None
    # What is left of them takes no more than is counted.
    _, pin = admit(cache, manifest_of({"n": b"n"}, "3" * 40))
    pin.close()
    assert not orphans(cache)
    assert cache.usage().present_bytes == len(FEW["config.json"]) + len(FEW["sub/dir/x"])
    assert disk_bytes(cache.layout.blobs) < 64 * 1024
    for name, files in ((bad, FEW), (snapshot, {"x": content("plain", MIB)})):
        record = cache.record(name)
        assert record is not None
        again, pin = admit(cache, record.manifest)
        assert again == name
        assert shown(fill(cache, name, files)) == files
        pin.close()
    check_books(cache)


def test_a_complete_file_nobody_had_sealed_is_sealed(directory: Path, opened: Opened) -> None:
    cache = open_cache(directory)
    snapshot, pin = admit(cache, manifest_of({"two.bin": TWO_CHUNKS}))
    record = cache.record(snapshot)
    assert record is not None
    for index in range(2):
        write_chunk(cache, record.blobs[0], TWO_CHUNKS, index)
    pin.close()
    cache.close()
    lose_index(directory)
    cache = opened()
    tree = cache.whole_tree(snapshot)
    assert tree is not None
    assert shown(tree) == {"two.bin": TWO_CHUNKS}
    assert (tree / "two.bin").stat().st_mode & 0o777 == 0o444


def test_windows_and_files_nobody_names_are_not_brought_back(directory: Path, opened: Opened) -> None:
    cache = open_cache(directory)
    window, pin = admit(cache, manifest_of(FEW), window=True)
    record = cache.record(window)
    assert record is not None
    write_chunk(cache, record.blobs[0], FEW["config.json"], 0)
    pin.close()
    cache.close()
    (directory / "blobs" / "ab").mkdir()
    (directory / "blobs" / "ab" / ("ab" * 32)).write_bytes(b"whose?")
    (directory / "blobs" / "ab" / "odd name").write_bytes(b"whose?")
    lose_index(directory)
    cache = opened()
    assert cache.snapshot_of(SELECTION, "1" * 40) is None
    assert cache.usage().charged_bytes == 0
    assert not disk_bytes(cache.layout.blobs)


def test_a_process_that_has_the_lost_index_open_goes_on_with_the_new(directory: Path) -> None:
    code = """
import sys
from pathlib import Path
from bdnfs.core.errors import CacheError
from tests.unit.cache.stocked import *
cache = open_cache(Path(sys.argv[1]))
snapshot = stock(cache, FEW)
files = {"two.bin": TWO_CHUNKS}
other, pin = admit(cache, manifest_of(files, "2" * 40))
blob = cache.record(other).blobs[0]
write_chunk(cache, blob, TWO_CHUNKS, 0)
print("stocked", flush=True)
sys.stdin.readline()
try:
    write_chunk(cache, blob, TWO_CHUNKS, 1)
except CacheError as error:
    assert "try again" in str(error), error
other, pin = admit(cache, manifest_of(files, "2" * 40))
assert shown(fill(cache, other, files)) == files
print(cache.whole_tree(snapshot) is not None)
"""
    running = python(code, directory)
    assert line_of(running) == "stocked"
    lose_index(directory)
    cache = open_cache(directory)
    assert cache.usage().present_bytes == sum(map(len, FEW.values()))
    assert finished([running]) == ["True\n"]
    check_books(cache)
    cache.close()


def test_several_processes_find_the_index_gone_and_one_rebuilds_it(directory: Path) -> None:
    cache = open_cache(directory)
    snapshot = stock(cache, FEW)
    cache.close()
    (directory / "index.broken").touch()
    code = """
import sys
from pathlib import Path
from tests.unit.cache.stocked import *
sys.stdin.readline()
cache = open_cache(Path(sys.argv[1]))
print(shown(cache.whole_tree(sys.argv[2])) == FEW)
cache.used(sys.argv[2])
check_books(cache)
"""
    assert finished([python(code, directory, snapshot) for _ in range(4)]) == ["True\n"] * 4
    cache = open_cache(directory)
    assert cache.usage().present_bytes == sum(map(len, FEW.values()))
    check_books(cache)
    cache.close()


def test_waiting_for_a_rebuild_ends(directory: Path) -> None:
    cache = open_cache(directory)
    stock(cache, FEW)
    cache.close()
    lose_index(directory)
    code = """
import sys
from pathlib import Path
from bdnfs.cache.locks import open_lock_file, try_lock
fd = open_lock_file(Path(sys.argv[1]))
print(try_lock(fd, exclusive=True), flush=True)
sys.stdin.readline()
"""
    holder = python(code, directory / "rebuild.lock")
    assert line_of(holder) == "True"
    with pytest.raises(CacheError, match=rf"being rebuilt .*pid {holder.pid}"):
        open_cache(directory, rebuild_timeout_s=0.2)
    kill(holder)
    cache = open_cache(directory)
    assert cache.usage().present_bytes
    cache.close()


def look_at_all(cache: NodeCache, snapshot: str) -> None:
    cache.whole_tree(snapshot)
    for blob, row in cache.blobs():
        cache.open_blob(blob, row.size)


@pytest.mark.parametrize("table", ["blobs", "snapshots", "chunks"])
def test_a_row_that_cannot_be_read_is_an_error_and_rebuilt_by_the_next(directory: Path, table: str) -> None:
    cache = open_cache(directory)
    snapshot = stock(cache, FEW)
    with cache._index.write() as txn:
        for key, _ in list(txn.scan(table)):
            txn.put(table, key, b"\xff\xff")
    with pytest.raises(CacheError, match="damaged"):
        look_at_all(cache, snapshot)
    cache.close()
    cache = open_cache(directory)
    tree = cache.whole_tree(snapshot)
    assert tree is not None
    assert shown(tree) == FEW
    cache.close()
