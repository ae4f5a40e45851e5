"""Whose a cache directory is, which format it has, and that nothing planted in it is followed."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.cache.layout import Layout, empty
from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import CacheError
from tests.unit.cache.stocked import FEW, finished, is_root, python, shown, stock


def test_a_cache_is_its_owners_alone(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    directory.mkdir(mode=0o755)
    Layout(directory).prepare()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.skipif(not is_root, reason="only root can make a cache another uid's")
def test_another_uids_cache_is_refused(tmp_path: Path, opened: Callable[..., NodeCache]) -> None:
    opened(tmp_path / "cache")
    os.chown(tmp_path / "cache", 12345, -1)
    with pytest.raises(CacheError, match="belongs to uid 12345, you are uid 0"):
        Layout(tmp_path / "cache").prepare()
    os.chown(tmp_path / "cache", 0, -1)


@pytest.mark.parametrize("found", ["2", "99", "one", "-1", "²"])
def test_a_newer_or_odd_format_is_refused(tmp_path: Path, found: str) -> None:
    Layout(tmp_path).prepare()
    (tmp_path / "format").write_text(found)
    with pytest.raises(CacheError, match="update bdnfs"):
        Layout(tmp_path).prepare()
    assert (tmp_path / "format").read_text() == found


def test_a_format_lost_to_a_power_cut_is_written_again(tmp_path: Path) -> None:
    Layout(tmp_path).prepare()
    (tmp_path / "format").write_text("")
    Layout(tmp_path).prepare()
    assert (tmp_path / "format").read_text() == "1\n"


@pytest.mark.parametrize("name", ["blobs", "trees", "trash", "snapshots", "pins", "writers", "mounts"])
def test_a_symlink_in_place_of_a_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="symlink"):
        Layout(tmp_path / "cache").prepare()


def test_a_file_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / "trees").write_text("")
    with pytest.raises(CacheError, match="trees"):
        Layout(tmp_path / "cache").prepare()
    with pytest.raises(CacheError):
        Layout(tmp_path / "cache" / "trees" / "below").prepare()


def test_a_symlink_below_blobs_is_not_written_through(cache: NodeCache, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for number in range(256):
        (cache.layout.blobs / f"{number:02x}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="symlink"):
        stock(cache, FEW)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_is_emptied_may_be_read_only_and_links_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_text("y")
    (tmp_path / "tree" / "deep" / "link").symlink_to(kept)
    os.chmod(tmp_path / "tree" / "deep", 0o555)
    os.chmod(tmp_path / "tree", 0o555)
    empty(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    assert (kept / "file").read_text() == "x"
    (tmp_path / "link").symlink_to(kept)
    empty(tmp_path / "link")
    assert (kept / "file").exists()


AS_ANOTHER = """
import os, sys
from pathlib import Path
from tests.unit.cache.stocked import *
os.setgid(12345); os.setuid(12345)  # after the imports: the interpreter may be root's alone
cache = open_cache(Path(sys.argv[1]))
first = stock(cache, FEW, "1" * 40)
tree = cache.whole_tree(first)
assert shown(tree) == FEW, shown(tree)
assert stock(cache, {"model.bin": FEW["model.bin"]}, "2" * 40) != first
os.utime(cache.layout.blob(next(iter(cache.record(first).blobs))))
assert shown(cache.whole_tree(first)) == FEW
os.chmod(tree, 0o700); (tree / "config.json").unlink(); os.chmod(tree, 0o555)
assert shown(cache.whole_tree(first)) == FEW
assert cache.evict(unused_since_s=float("inf"), dry_run=False).freed_bytes
check_books(cache)
assert not orphans(cache), orphans(cache)
print(disk_bytes(cache.layout.blobs), len(list(cache.layout.trees.iterdir())))
"""


@pytest.mark.skipif(not is_root, reason="only root can become another uid")
def test_an_unprivileged_user_fills_mends_and_evicts() -> None:
    """Moving a read-only directory needs more rights than root notices."""
    with tempfile.TemporaryDirectory() as place:  # pytest's own are closed to others
        os.chown(place, 12345, 12345)
        assert finished([python(AS_ANOTHER, f"{place}/cache")]) == ["0 0\n"]


def test_shown_is_what_was_stocked(cache: NodeCache) -> None:
    tree = cache.whole_tree(stock(cache, FEW))
    assert tree is not None
    assert shown(tree) == FEW
