"""fsx, reading only, over the FUSE view while it fills and over the native tree."""

import os
import sys
import time

import pytest

from tests.readers.conftest import Held, seed_of


def exercise(held: Held, seed: str, steps: int) -> None:
    limit_s = 100 + steps / 10
    held.node.start_program(sys.executable, "-m", "tests.readers.fsx", held.node.m, seed, steps).wait(
        limit_s=limit_s
    )


def test_fsx_finds_nothing_in_either_view(held: Held, request: pytest.FixtureRequest) -> None:
    seed = seed_of(request)
    held.mount(pace_bytes_per_s=4e6)
    exercise(held, seed, 500)
    assert held.node.shown() == "fuse"
    held.let_go()
    exercise(held, f"{seed}-native", 500)
    held.unmount()


@pytest.mark.long
@pytest.mark.timeout(0)
def test_fsx_for_long(held: Held, request: pytest.FixtureRequest) -> None:
    end = time.monotonic() + float(os.environ.get("BDNFS_LONG_S", "3600"))
    rounds = 0
    while time.monotonic() < end:
        seed = f"{seed_of(request)}-{rounds}"
        held.mount()
        exercise(held, seed, 3_000)
        held.let_go()
        exercise(held, f"{seed}-native", 3_000)
        held.unmount()
        held.node.run("cache", "evict")
        rounds += 1
    assert rounds
