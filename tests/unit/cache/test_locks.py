"""OFD locks: between descriptions, gone with their holder, never in the way of a child."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from bdnfs.cache.locks import holders, is_held, is_used, lock_until, open_lock_file, try_lock, unlock
from bdnfs.cache.pins import Pin
from bdnfs.core.errors import CacheError
from tests.unit.cache.stocked import kill, line_of, python

HOLD = """
import sys
from pathlib import Path
from bdnfs.cache.locks import open_lock_file, try_lock
fd = open_lock_file(Path(sys.argv[1]))
print(try_lock(fd, exclusive=True), flush=True)
sys.stdin.readline()
"""


def test_two_descriptions_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = open_lock_file(path), open_lock_file(path)
    assert try_lock(first, exclusive=True)
    assert not try_lock(second, exclusive=False)
    unlock(first)
    assert try_lock(second, exclusive=False)
    assert try_lock(first, exclusive=False)
    assert not try_lock(first, exclusive=True)
    os.close(first)
    assert try_lock(second, exclusive=True)
    os.close(second)


def test_ranges_are_locked_each_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = open_lock_file(path), open_lock_file(path)
    assert try_lock(first, exclusive=True, start=0, length=8)
    assert try_lock(second, exclusive=True, start=8, length=8)
    assert not try_lock(second, exclusive=True, start=7, length=1)
    assert not try_lock(second, exclusive=True)
    os.close(first)
    os.close(second)


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = python(HOLD, path)
    assert line_of(holder) == "True"
    assert is_held(path)
    assert is_used(path)
    assert holders(path) == [f"python (pid {holder.pid})"] or str(holder.pid) in holders(path)[0]
    kill(holder)
    assert not is_held(path)
    assert not is_used(path)


def test_a_shared_holder_uses_but_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fd = open_lock_file(path)
    assert try_lock(fd, exclusive=False)
    assert is_used(path)
    assert not is_held(path)
    os.close(fd)


def test_waiting_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = open_lock_file(path), open_lock_file(path)
    assert try_lock(first, exclusive=True)
    assert not lock_until(second, exclusive=False, deadline_s=time.monotonic() + 0.05)
    os.close(first)
    os.close(second)


def test_no_child_inherits_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fd = open_lock_file(path)
    assert try_lock(fd, exclusive=True)
    with subprocess.Popen(["sleep", "30"], close_fds=False) as child:
        os.close(fd)
        assert not is_used(path)
        child.kill()


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="link"):
        open_lock_file(tmp_path / "link")
    assert not is_held(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_pin_is_on_the_file_at_the_path(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    first = Pin(path, time.monotonic())
    path.unlink()
    second = Pin(path, time.monotonic())
    assert is_used(path)
    second.close()
    assert not is_used(path)
    first.close()


def test_a_pin_waits_until_its_deadline(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    fd = open_lock_file(path)
    assert try_lock(fd, exclusive=True)
    with pytest.raises(TimeoutError):
        Pin(path, time.monotonic() + 0.05)
    os.close(fd)
