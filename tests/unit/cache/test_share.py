"""The share: its cap, what the disk has room for, what it finds and what it never gives."""

import random
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from bdnfs.cache.layout import Layout
from bdnfs.cache.share import Share, ShareKey, drop_share
from bdnfs.core.errors import CacheError

_dice = random.Random(3)
SIZE = 10_000


def chunk(org: str = "default") -> tuple[ShareKey, memoryview]:
    data = _dice.randbytes(SIZE)
    return ShareKey(org, "weights", blake3(data).hexdigest()), memoryview(data)


class Disk:
    """A disk that holds what lies in a directory, and has room for so much in all."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size

    def __call__(self) -> int:
        return self.size - sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())


@pytest.fixture
def share(tmp_path: Path) -> Share:
    found = Share(tmp_path / "share", 5 * SIZE, Disk(tmp_path, 1 << 30))
    found.scan()
    return found


def test_what_is_kept_is_found_and_read(share: Share) -> None:
    key, data = chunk()
    assert share.find(key) is None
    assert share.keep(key, data)
    assert share.looks_sound(key) == share.find(key) == SIZE
    into = memoryview(bytearray(SIZE))
    assert share.read(key, into)
    assert into == data
    share.drop(key)
    assert share.find(key) is None
    assert not share.read(key, into)
    assert share.used_bytes == 0
    assert not list(share.directory.rglob(f"{key.digest}*"))


def test_a_chunk_that_is_larger_than_all_of_it_pushes_nothing_out(share: Share) -> None:
    key, data = chunk()
    share.keep(key, data)
    assert not share.keep(ShareKey("default", "weights", "0" * 64), memoryview(bytes(6 * SIZE)))
    assert share.find(key) == SIZE


def test_many_threads_keep_no_more_than_the_cap(share: Share) -> None:
    chunks = [chunk() for _ in range(40)]

    def keep(part: list[tuple[ShareKey, memoryview]]) -> None:
        for key, data in part:
            share.keep(key, data)
            assert share.used_bytes <= share.cap_bytes

    threads = [threading.Thread(target=keep, args=(chunks[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [path for path in share.directory.rglob("*") if path.is_file()]
    assert len(kept) == len(share) <= 5
    assert share.used_bytes == sum(path.stat().st_size for path in kept)


def test_where_the_disk_has_no_room_the_share_makes_way(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 3 * SIZE)
    share = Share(tmp_path / "share", 5 * SIZE, disk)
    share.scan()
    chunks = [chunk() for _ in range(4)]
    for key, data in chunks:
        assert share.keep(key, data)
    assert len(share) == 3
    # A fill was promised most of the disk meanwhile.
    disk.size = SIZE
    share.shrink()
    assert [share.find(key) for key, _ in chunks] == [None, None, None, SIZE]
    disk.size = 0
    assert not share.keep(*chunk())
    assert share.used_bytes == len(share) == 0


def test_where_nobody_can_say_what_the_disk_has_room_for_nothing_is_kept(tmp_path: Path) -> None:
    def unknown() -> int:
        raise CacheError("the index is locked")

    share = Share(tmp_path / "share", 5 * SIZE, unknown)
    share.scan()
    assert not share.keep(*chunk())
    share.shrink()
    assert share.used_bytes == len(share) == 0


def test_after_a_restart_nothing_is_given_unhashed(tmp_path: Path, share: Share) -> None:
    (good, one), (bad, two) = chunk(), chunk()
    share.keep(good, one)
    share.keep(bad, two)
    (share.directory / bad.path).write_bytes(bytes(SIZE))
    (share.directory / "default" / "weights" / "zz").mkdir()
    (share.directory / "default" / "weights" / "zz" / "junk").touch()
    again = Share(share.directory, 5 * SIZE, lambda: 1 << 30)
    again.scan()
    assert again.looks_sound(good) is again.looks_sound(bad) is None
    assert again.find(bad) is None
    assert again.find(good) == again.looks_sound(good) == SIZE
    assert again.used_bytes == SIZE
    assert not (share.directory / "default" / "weights" / "zz" / "junk").exists()


def test_a_smaller_cap_than_last_time_is_held_at_once(share: Share) -> None:
    for _ in range(5):
        share.keep(*chunk())
    again = Share(share.directory, 2 * SIZE, lambda: 1 << 30)
    again.scan()
    assert again.used_bytes == 2 * SIZE
    assert len([path for path in share.directory.rglob("*") if path.is_file()]) == 2


def test_a_tenant_that_is_purged_leaves_nothing_in_the_share(tmp_path: Path, share: Share) -> None:
    layout = Layout(tmp_path)
    layout.prepare()
    (mine, one), (other, two) = chunk(), chunk("acme")
    share.keep(mine, one)
    share.keep(other, two)
    assert drop_share(layout, "acme") == SIZE
    assert drop_share(layout, "nobody") == 0
    assert share.find(other) is None
    assert share.find(mine) == SIZE
    assert share.used_bytes == SIZE
