"""Memory that is set aside: a program has it, and afterwards the machine has it back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory import set_aside
from benchmarks.processes import BenchmarkError

POOL = Path("/proc/sys/vm/nr_hugepages")
MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not POOL.exists(),
    reason="only root sets huge pages aside, where the kernel has them",
)

# What a program has in huge pages, in KiB, with 32 MiB in use.
USES = """
import re
held = bytearray(b"x") * (32 << 20)
print(sum(map(int, re.findall(r"Private_Hugetlb: *([0-9]+) kB", open("/proc/self/smaps").read()))))
"""


def test_a_program_takes_its_memory_from_what_was_set_aside_and_it_is_given_back() -> None:
    before = POOL.read_text()
    with set_aside(128 * MIB) as variables:
        assert int(POOL.read_text()) > int(before)
        done = subprocess.run(
            [sys.executable, "-c", USES], env={**os.environ, **variables}, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 32 << 10
    assert POOL.read_text() == before


def test_of_nothing_there_is_nothing_to_set_aside() -> None:
    before = POOL.read_text()
    with set_aside(0) as variables:
        assert variables == {}
        assert POOL.read_text() == before


def test_more_than_the_machine_has_is_refused_and_nothing_stays_set_aside() -> None:
    before = POOL.read_text()
    with pytest.raises(BenchmarkError, match="GB are available"), set_aside(1 << 50):
        pass
    assert POOL.read_text() == before
