"""Processes timed from outside, and the daemons they leave behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import BenchmarkError, timed
from benchmarks.reading import READ_BYTES, read_file
from benchmarks.workplace import open_workplace
from tests.unit.benchmarks.conftest import ROOT

# In a child: adopting orphans is for life, and a process's account begins with its parent's memory.
WEIGHS = """
import os, sys
from benchmarks.processes import adopt_orphans, children, reap, timed
adopt_orphans()
known = children()
holds = "bytearray(200_000_000)"
leaves = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{holds}'], start_new_session=True)"
ended = timed([sys.executable, "-c", leaves], os.environ)
(orphan,) = children() - known
print(ended.peak_rss_bytes, timed([sys.executable, "-c", holds], os.environ).peak_rss_bytes, reap(orphan, 30))
"""


def test_what_a_failed_process_said_is_in_the_error():
    code = "import sys; sys.exit('no such thing')"
    with pytest.raises(BenchmarkError, match=r"exit code 1; it said:\nno such thing"):
        timed([sys.executable, "-c", code], os.environ)


def test_output_and_time_are_the_process_s_own():
    ended = timed([sys.executable, "-c", "print('said')"], os.environ)
    assert ended.output == "said\n"
    assert ended.seconds > 0


def test_a_process_is_weighed_and_so_is_the_daemon_it_left_behind():
    done = subprocess.run(
        [sys.executable, "-c", WEIGHS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    command, holder, daemon = map(int, done.stdout.split())
    assert 4e6 < command < 100e6
    assert 200e6 < holder < 300e6
    assert 200e6 < daemon < 300e6


def test_reading_reads_all_of_it(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(bytes(2 * READ_BYTES + 5))
    assert read_file(file, passes=2)[0] == 2 * (2 * READ_BYTES + 5)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_benchmarks_do_not_share_a_place(tmp_path: Path):
    with (
        open_workplace(tmp_path, small=True),
        pytest.raises(BenchmarkError, match="another benchmark works in"),
        open_workplace(tmp_path, small=True),
    ):
        raise AssertionError("not reached")
    with open_workplace(tmp_path, small=True) as workplace:
        assert workplace.upstream_bytes() == 0
        assert len(workplace.commit()) == 40
