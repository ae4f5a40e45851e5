"""Several processes read at random, through the whole life of a mount, and compare every byte."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.commands.node import Command, Node, until
from tests.readers.conftest import Held, seed_of

READERS = 5


class Readers:
    """The processes, and what they have done so far."""

    def __init__(self, node: Node, seed: str) -> None:
        self.control = node.place / f"control-{seed}"
        self.control.mkdir()
        stat = subprocess.run(["stat", "-c", "%d", node.m], check=True, capture_output=True, timeout=60)
        words = [str(node.m), str(self.control)]
        self.commands: list[Command] = [
            node.start_program(
                sys.executable, "-m", "tests.readers.many", *words, number, seed, stat.stdout.decode().strip()
            )
            for number in range(READERS)
        ]

    def done(self) -> list[Counter[str]]:
        for command in self.commands:
            assert command.process.poll() in (None, 0), command.err
        found = (self.control / str(number) for number in range(READERS))
        return [Counter(json.loads(path.read_text()) if path.exists() else {}) for path in found]

    def wait(self, what: str, least: int, limit_s: float = 60) -> None:
        """Return once each has done so much of what."""
        until(lambda: all(each[what] >= least for each in self.done()), f"{least} {what} reads", limit_s)

    def stop(self) -> Counter[str]:
        (self.control / "stop").touch()
        for command in self.commands:
            command.wait()
        return sum(self.done(), Counter())


def life(held: Held, seed: str, turns: int, beyond_s: float = 0) -> None:
    """Mount, read while it fills, across the hand-off, and natively; unmount."""
    held.mount(pace_bytes_per_s=3e6)
    readers = Readers(held.node, seed)
    readers.wait("first", turns)
    held.let_go()
    readers.wait("then", turns)
    readers.wait("kept", turns // 10)
    deadline = time.monotonic() + beyond_s
    until(lambda: readers.done() and time.monotonic() >= deadline, "the rest", beyond_s + 60)
    assert held.node.daemons()  # for the open files
    done = readers.stop()
    assert done["forked"] > 0, done
    held.unmount()


def test_five_processes_read_every_byte_right_while_it_fills_is_handed_off_and_is_native(
    held: Held, request: pytest.FixtureRequest
) -> None:
    seed = seed_of(request)
    print(f"BDNFS_SEED={seed}")
    life(held, seed, turns=120)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_processes_read_for_long(held: Held, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    seed = seed_of(request)
    print(f"BDNFS_SEED={seed}")
    end = time.monotonic() + float(os.environ.get("BDNFS_LONG_S", "3600"))
    number = 0
    while time.monotonic() < end:
        life(held, f"{seed}-{number}", turns=1000, beyond_s=20)
        held.node.run("cache", "evict")
        number += 1
    assert number
