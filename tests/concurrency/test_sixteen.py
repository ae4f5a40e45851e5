"""Sixteen processes do as they like with one cache that can't hold all they want."""

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.node import ROOT, WAIT_S, Command, Node, until

PROCESSES = 16
MODELS = 6
MODEL_BYTES = 26 << 20
# The least that a config may say: two and a half models, and the sixteen want six.
CAPACITY_BYTES = 64 << 20
# More than would be left with the cache full: it is sometimes the one that has no room, sometimes the other.
RESERVE_BYTES = 48 << 20
# Directories, records, locks, logs: 4 KiB each on tmpfs, and never counted against the capacity.
SUNDRY_BYTES = 6 << 20
DISK_BYTES = 144 << 20
# What a command may end with: everything is fine, or there is no room.
EXPECTED = {0, 4}
LIMIT_S = 90.0


class Slot:
    """One of the sixteen: what it has mounted, and the command it is at."""

    def __init__(self, number: int, node: Node, expected: Path, dice: random.Random) -> None:
        self._node, self._expected, self._dice = node, expected, dice
        self._place = node.m / str(number)
        self._mounted: str | None = None
        self._command: Command | None = None
        self._after: Callable[[int], None] = lambda code: None
        self.codes: list[int] = []
        self._history: list[str] = []

    def go_on(self, *, more: bool) -> bool:
        """Start the next command where none is under way; return whether there is anything left to do."""
        if self._command is not None:
            if self._command.process.poll() is None:
                return True
            done = self._command.wait(None)
            bugs = [path.read_text() for path in (self._node.place / "tmp").glob("bdnfs-bug-*")]
            words = " ".join(self._command.words)
            self._history.append(f"{words} ended with {done.code}:\n{done.out}{done.err}")
            said = "\n".join([*self._history, *bugs])
            assert done.code in EXPECTED, said
            self.codes.append(done.code)
            self._command = None
            self._after(done.code)
        if not more and self._mounted is None:
            return False
        self._next() if more else self._unmount()
        return True

    def _start(self, *words: object, after: Callable[[int], None] = lambda code: None) -> None:
        self._command, self._after = self._node.start(*words), after

    def _next(self) -> None:
        model = f"hf://acme/m{self._dice.randrange(MODELS)}"
        anytime = [
            lambda: self._start("cache", "evict"),
            lambda: self._start("cache", "verify"),
            lambda: self._start("cache", "ls"),
            lambda: self._start("prefetch", model),
            lambda: self._run(model),
        ]
        if self._mounted is None:
            self._dice.choice([*anytime, *4 * [lambda: self._mount(model)]])()
        else:
            self._dice.choice([*anytime, *3 * [self._read], *4 * [self._unmount]])()

    def _mount(self, model: str) -> None:
        def note(code: int) -> None:
            self._mounted = model if code == 0 else None

        how = self._dice.choice([[], [], ["--lazy"], ["--lazy", "--no-fill"]])
        self._start("mount", *how, model, self._place, after=note)

    def _unmount(self) -> None:
        def note(code: int) -> None:
            assert code == 0
            self._mounted = None

        self._start("unmount", self._place, after=note)

    def _read(self) -> None:
        assert self._mounted is not None
        self._command = self._node.start_program("diff", "-r", self._files(self._mounted), self._place)
        self._after = lambda code: None

    def _run(self, model: str) -> None:
        place = self._place.with_name(f"{self._place.name}-run")
        self._start("run", model, place, "--", "diff", "-r", self._files(model), place)

    def _files(self, model: str) -> Path:
        return self._expected / model.rpartition("/")[2]


def _models(hub: HubServer, expected: Path, dice: random.Random) -> None:
    """Make the models; two files of each are in the next one too."""
    shared = [dice.randbytes(MODEL_BYTES // 8) for _ in range(MODELS)]
    for number in range(MODELS):
        files = {
            "config.json": b'{"model_type": "qwen3"}\n',
            "a.safetensors": shared[number],
            "b.safetensors": shared[(number + 1) % MODELS],
            "model.safetensors": dice.randbytes(MODEL_BYTES * 3 // 4),
        }
        hub.commit(f"acme/m{number}", files)
        directory = expected / f"m{number}"
        directory.mkdir(parents=True)
        for path, content in files.items():
            (directory / path).write_bytes(content)


def play(node: Node, hub: HubServer, disk: Path, seed: int, commands: int) -> None:
    """Let sixteen slots do so many commands in all; look at the cache all the while, and in the end."""
    dice = random.Random(seed)
    _models(hub, node.place / "expected", dice)
    node.cache = disk / "cache"
    node.environment["BDNFS_CACHE_DIR"] = str(node.cache)
    node.configure(cache={"capacity": CAPACITY_BYTES, "reserve": RESERVE_BYTES})
    node.run("cache", "ls")
    slots = [
        Slot(number, node, node.place / "expected", random.Random(dice.random()))
        for number in range(PROCESSES)
    ]
    sampler = subprocess.Popen(
        [sys.executable, "-m", "tests.concurrency.sampler", str(node.cache)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with sampler, contextlib.ExitStack() as at_end:
        at_end.callback(sampler.kill)
        assert sampler.stdout is not None
        assert sampler.stdout.readline() == "sampling\n"

        def under_way() -> bool:
            more = sum(len(slot.codes) for slot in slots) < commands
            left = [slot.go_on(more=more) for slot in slots]  # each of them, every time
            return not any(left)

        until(under_way, "sixteen processes to come to an end", LIMIT_S + commands)
        seen = json.loads(sampler.communicate(timeout=WAIT_S)[0])
    codes = [code for slot in slots for code in slot.codes]
    assert codes.count(0) > PROCESSES, codes
    assert seen["samples"] > 20, seen
    assert seen["charged_bytes"] <= CAPACITY_BYTES, seen
    # What was evicted is not charged any more, and may take a moment to go: while others still have it open.
    assert seen["used_bytes"] <= CAPACITY_BYTES + MODEL_BYTES + SUNDRY_BYTES, seen
    assert seen["free_bytes"] >= RESERVE_BYTES - SUNDRY_BYTES, seen
    node.clean()
    node.check_cache()
    node.configure()
    node.run("cache", "evict")
    du = node.run("cache", "du", "--json").json
    assert (du["present_bytes"], du["charged_bytes"]) == (0, 0)
    assert not [
        path for name in ("blobs", "trees", "trash", "snapshots") for path in _files(node.cache / name)
    ]
    assert not os.listdir(node.cache / "writers")


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize("seed", [1])
def test_sixteen_at_random(small_disk: Callable[[int], Path], node: Node, hub: HubServer, seed: int) -> None:
    play(node, hub, small_disk(DISK_BYTES), seed, commands=70)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 130))
def test_sixteen_at_random_for_long(
    small_disk: Callable[[int], Path], node: Node, hub: HubServer, seed: int
) -> None:
    play(node, hub, small_disk(DISK_BYTES), seed, commands=600)
