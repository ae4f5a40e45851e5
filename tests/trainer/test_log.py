"""A job's log: whole lines with their times, whoever writes; what can't be written holds nobody up."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.engine.log import LINE_BYTES_MAX, Follower, Lines, Log, last_lines, read_log, without_stamp


def said(path: Path) -> list[str]:
    return [without_stamp(line) for line in read_log(path)]


def test_lines_are_cut_where_they_end_and_where_they_are_too_long() -> None:
    lines = Lines()
    assert lines.feed(b"a\nb") == [b"a"]
    assert lines.feed(b"c\r\n\nd") == [b"bc", b""]
    assert lines.end() == [b"d"]
    assert lines.end() == []
    (first,) = lines.feed(b"x" * (LINE_BYTES_MAX + 5))
    assert len(first) == LINE_BYTES_MAX
    assert lines.feed(b"\n") == [b"x" * 5]


def test_every_line_has_its_time_and_the_trainers_own_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    log = Log(path)
    log.add([b"one", b"\xfftwo"])
    log.say("first\nsecond")
    log.close()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", line) for line in read_log(path))
    assert said(path) == ["one", "\ufffdtwo", "trainer: first", "trainer: second"]
    assert last_lines(path, 1) == ["\ufffdtwo"]
    assert last_lines(path, 1, own=True) == ["trainer: second"]
    assert last_lines(tmp_path / "none", 3) == []
    assert list(read_log(tmp_path / "none")) == []


def test_a_log_that_is_full_keeps_what_the_trainer_says(tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    log = Log(path, bytes_max=100)
    for number in range(10):
        log.add([f"line {number}".encode()])
    log.say("COMPLETED")
    log.close()
    assert said(path)[-2:] == [
        "trainer: the log has reached 100 bytes; what follows is not kept",
        "trainer: COMPLETED",
    ]
    assert "line 9" not in said(path)
    assert sum("reached" in line for line in said(path)) == 1


def test_a_follower_gets_each_line_once_and_only_whole_ones(tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    follower = Follower(path)
    assert follower.more() == []
    path.write_bytes(b"t one\nt tw")
    assert follower.more() == ["t one"]
    with path.open("ab") as file:
        file.write(b"o\n")
    assert follower.more() == ["t two"]
    assert follower.more() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64K", "small", place], check=True, timeout=60)
    yield place
    subprocess.run(["umount", "-l", place], check=True, timeout=60)


def test_lines_lost_to_a_full_disk_are_counted_where_they_are_missing(small_disk: Path) -> None:
    log = Log(small_disk / "job.log")
    log.add([b"before"])
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    log.add([b"x" * 5000, b"y" * 5000])
    filler.unlink()
    log.add([b"after"])
    log.close()
    lines = said(small_disk / "job.log")
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert "trainer: 2 lines could not be written here" in lines
