"""The index: counted exactly by several processes, waited for with a deadline, healed when broken."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdnfs.cache.index import HEADROOM_BYTES, BrokenIndexError, Index
from bdnfs.cache.locks import open_lock_file, try_lock
from bdnfs.cache.opening import open_index, release
from bdnfs.core.errors import CacheError, SpaceError
from tests.unit.cache.stocked import WAIT_S, finished, is_root, kill, line_of, python

Filesystem = Callable[[str, int], Path]
COUNT = """
import os, sys
from pathlib import Path
from bdnfs.cache.locks import open_lock_file, try_lock
from bdnfs.cache.opening import open_index
print(os.getpid(), flush=True)
index = open_index(Path(sys.argv[1]), 60.0)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    with index.write() as txn:
        txn.put("meta", b"count", b"%d" % (int(txn.get("meta", b"count") or 0) + 1))
"""
HOLD = """
import sys, time
from pathlib import Path
from bdnfs.cache.locks import open_lock_file, try_lock
from bdnfs.cache.opening import open_index
with open_index(Path(sys.argv[1]), 60.0).write() as txn:
    txn.put("meta", b"half", b"done")
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = open_index(tmp_path, WAIT_S)
    yield index
    release(index)


def counted(index: Index) -> int:
    with index.read() as txn:
        return int(txn.get("meta", b"count") or 0)


def test_two_processes_count_exactly(tmp_path: Path, index: Index) -> None:
    processes = [python(COUNT, tmp_path, 150) for _ in range(2)]
    for process in processes:
        line_of(process)
    finished(processes)
    assert counted(index) == 300


@pytest.mark.skipif(not is_root, reason="a PID namespace needs root")
def test_two_processes_that_are_both_pid_1_count_exactly(tmp_path: Path, index: Index) -> None:
    words = ["unshare", "--pid", "--fork", "--mount-proc"]
    processes = [python(COUNT, tmp_path, 150, prefix=words) for _ in range(2)]
    assert [line_of(process) for process in processes] == ["1", "1"]
    finished(processes)
    assert counted(index) == 300


def test_threads_count_exactly(index: Index) -> None:
    def count() -> None:
        for _ in range(50):
            with index.write() as txn:
                txn.put("meta", b"count", b"%d" % (int(txn.get("meta", b"count") or 0) + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted(index) == 200


def test_a_stopped_holder_is_named_by_the_deadline(tmp_path: Path) -> None:
    index = open_index(tmp_path, 0.3)
    holder = python(HOLD, tmp_path)
    try:
        assert line_of(holder) == "held"
        holder.send_signal(signal.SIGSTOP)
        began_s = time.monotonic()
        with pytest.raises(CacheError, match=rf"\(pid {holder.pid}, stopped\)"), index.read():
            pass
        assert time.monotonic() - began_s < 5
    finally:
        kill(holder)
        release(index)


def test_a_killed_holder_is_waited_for_no_longer_and_has_changed_nothing(
    tmp_path: Path, index: Index
) -> None:
    holder = python(HOLD, tmp_path)
    assert line_of(holder) == "held"
    kill(holder)
    with index.read() as txn:
        assert txn.get("meta", b"half") is None


def test_a_second_opening_in_a_process_shares_the_first(tmp_path: Path, index: Index) -> None:
    again = open_index(tmp_path)
    assert again is index
    release(again)
    assert counted(index) == 0


def test_a_closed_index_says_so(tmp_path: Path) -> None:
    index = open_index(tmp_path)
    release(index)
    with pytest.raises(CacheError, match="closed"), index.read():
        pass


def test_an_error_rolls_back_and_undoes(index: Index) -> None:
    done: list[str] = []

    def fail() -> None:
        with index.write() as txn:
            txn.put("meta", b"count", b"7")
            txn.on_abort(lambda: done.append("first"))
            txn.on_abort(lambda: done.append("second"))
            txn.after_commit(lambda: done.append("committed"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert done == ["second", "first"]
    assert counted(index) == 0


def test_what_follows_a_commit_runs_with_the_lock_held(tmp_path: Path, index: Index) -> None:
    seen: list[bool] = []

    def look() -> None:
        fd = open_lock_file(tmp_path / "index.lock")
        seen.append(try_lock(fd, exclusive=False))
        os.close(fd)

    with index.write() as txn:
        txn.put("meta", b"count", b"1")
        txn.after_commit(look)
    assert seen == [False]
    assert counted(index) == 1


def test_an_index_that_was_replaced_is_the_index(tmp_path: Path, index: Index) -> None:
    with index.write() as txn:
        txn.put("meta", b"count", b"1")
    (tmp_path / "index.lmdb").rename(tmp_path / "aside")
    assert counted(index) == 0
    with index.write() as txn:
        txn.put("meta", b"count", b"5")
    shutil.copy(tmp_path / "index.lmdb", tmp_path / "fresh")
    (tmp_path / "fresh").rename(tmp_path / "index.lmdb")
    assert counted(index) == 5


def test_an_index_cut_off_under_us_is_an_error_not_a_crash(tmp_path: Path) -> None:
    index = open_index(tmp_path, WAIT_S)
    try:
        with index.write() as txn:
            for number in range(500):
                txn.put("chunks", b"%d" % number, bytes(50))
        os.truncate(tmp_path / "index.lmdb", 4096 * 3)
        with pytest.raises(BrokenIndexError, match="cut off"), index.write() as txn:
            txn.put("meta", b"count", b"1")
    finally:
        release(index)
    index = open_index(tmp_path, WAIT_S)
    assert counted(index) == 0
    release(index)


def damaged(data: bytearray, how: str) -> bytes:
    used = len(data.rstrip(b"\0"))
    if how == "empty":
        return b""
    if how == "zeroed":
        return bytes(len(data))
    if how == "cut":
        return bytes(data[: used // 2 // 4096 * 4096])
    if how == "stub":
        return bytes(data[:5000])
    start = {"torn": 2, "garbage": 2}[how] * 4096
    filler = bytes(4096) if how == "torn" else os.urandom(4096)
    for page in range(start, used, 4096):
        data[page : page + 4096] = filler
    return bytes(data)


@pytest.mark.parametrize("how", ["empty", "zeroed", "cut", "stub", "torn", "garbage"])
def test_a_damaged_file_is_moved_aside_when_opened(tmp_path: Path, how: str) -> None:
    path = tmp_path / "index.lmdb"
    index = open_index(tmp_path, WAIT_S)
    with index.write() as txn:
        for number in range(3000):
            txn.put("chunks", b"%d" % number, bytes(50))
    release(index)
    path.write_bytes(damaged(bytearray(path.read_bytes()), how))
    index = open_index(tmp_path, WAIT_S)
    try:
        with index.write() as txn:
            assert txn.get("chunks", b"17") is None
            txn.put("chunks", b"17", b"new")
    except BrokenIndexError:
        # Damage that only a look finds: the next to open has a new index.
        release(index)
        index = open_index(tmp_path, WAIT_S)
    with index.write() as txn:
        assert txn.get("chunks", b"18") is None
        txn.put("chunks", b"18", b"new")
    release(index)


READ = """
import sys
from pathlib import Path
from bdnfs.cache.locks import open_lock_file, try_lock
from bdnfs.cache.opening import open_index
with open_index(Path(sys.argv[1]), 60.0).write() as txn:
    for _ in txn.scan("chunks"): pass
    for number in range(0, 3000, 3):
        txn.put("chunks", b"%d" % number, bytes(70))
        txn.delete("chunks", b"%d" % (number + 1))
"""


def test_damage_that_kills_its_reader_is_found_by_the_next(tmp_path: Path) -> None:
    """LMDB aborts the process on some damage; whatever page it is, the second or third try stands."""
    path = tmp_path / "index.lmdb"
    index = open_index(tmp_path, WAIT_S)
    with index.write() as txn:
        for number in range(3000):
            txn.put("chunks", b"%d" % number, bytes(50))
    with index.write() as txn:
        for number in range(0, 3000, 7):
            txn.delete("chunks", b"%d" % number)
    release(index)
    whole = path.read_bytes()
    killed = 0
    for page in range(2, len(whole.rstrip(b"\0")) // 4096, 20):
        path.write_bytes(whole[: page * 4096] + bytes(4096) + whole[(page + 1) * 4096 :])
        (tmp_path / "index.broken").unlink(missing_ok=True)
        (tmp_path / "index.lock").unlink()  # which knows that there has been a newer one
        for _ in range(3):
            process = python(READ, tmp_path)
            process.communicate(timeout=WAIT_S)
            killed += process.returncode < 0
            if process.returncode == 0:
                break
        assert process.returncode == 0, f"page {page}"
    assert killed, "no page's loss kills a reader any more: is this test of use?"


def test_a_killed_reader_of_a_good_index_costs_nobody_anything(tmp_path: Path, index: Index) -> None:
    with index.write() as txn:
        txn.put("meta", b"count", b"3")
    release(index)
    holder = python(HOLD, tmp_path)
    assert line_of(holder) == "held"
    kill(holder)
    index.users += 1  # the fixture releases it again
    index = open_index(tmp_path, WAIT_S)
    assert counted(index) == 3
    assert not (tmp_path / "index.lmdb.broken").exists()
    release(index)


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "index.lmdb").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="symlink"):
        open_index(tmp_path)
    (tmp_path / "index.lmdb").unlink()
    (tmp_path / "index.lock").unlink()
    (tmp_path / "index.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match=r"index\.lock"):
        open_index(tmp_path)


def fill_disk(place: Path) -> None:
    """Write until nothing more fits."""
    with (place / "filler").open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def grow(index: Index) -> None:
    """Put in more than the room there is ahead."""
    for number in range(100):
        with index.write() as txn:
            for row in range(2000):
                txn.put("chunks", b"more %d %d" % (number, row), bytes(50))


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_deleting_commits_on_a_full_disk_and_growing_is_refused(filesystem: object, kind: str) -> None:
    place = filesystem(kind, 64)
    index = open_index(place, WAIT_S)
    try:
        with index.write() as txn:
            for number in range(100_000):
                txn.put("chunks", b"%d" % number, bytes(50))
        fill_disk(place)
        with pytest.raises(SpaceError, match="evict"):
            grow(index)
        assert index.path.stat().st_blocks * 512 > HEADROOM_BYTES
        with index.write(deletes=True) as txn:
            for key in sorted(b"%d" % number for number in range(100_000)):
                txn.delete("chunks", key)
        with index.read() as txn:
            assert txn.get("chunks", b"99999") is None
    finally:
        release(index)


def test_no_room_for_a_new_index_is_a_space_error(filesystem: Filesystem) -> None:
    place = filesystem("tmpfs", 4)
    with pytest.raises(SpaceError, match="no room for the index"):
        open_index(place)
    place.joinpath("index.lmdb").unlink()
