"""fsx, reading only: one process, odd offsets around every boundary, each operation compared and logged.

Usage: python -m tests.readers.fsx TOP SEED STEPS

The last operations are printed where one fails, newest last, with the seed that brings them again.
"""

import os
import random
import sys
from collections import deque
from pathlib import Path

from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.units import MIB
from tests.readers.contents import PAGE, READ, content
from tests.readers.ways import WAYS, check, check_holes, stir

_LOGGED = 60
_LENGTH_MAX = 3 * MIB


def edges(size: int) -> list[int]:
    """Return where something begins or ends in a file of this size."""
    steps = (PAGE, 128 * 1024, MIB, CHUNK_BYTES)
    return sorted({0, size, size // PAGE * PAGE, *(at for step in steps for at in range(0, size + 1, step))})


def near(dice: random.Random, places: list[int]) -> int:
    """Return an offset at one of the places, or a few bytes off."""
    return max(0, dice.choice(places) + dice.choice((0, 0, -1, 1, -2, 3, -511, 513, -4095, 4097)))


def exercise(top: Path, seed: str, steps: int, log: "deque[str]") -> None:
    """Read at random for so many steps; log says each before it is done."""
    dice = random.Random(seed)
    fds: dict[str, int] = {}
    places = {path: edges(len(content(path))) for path in READ}
    try:
        for step in range(steps):
            path = dice.choice(READ) if dice.random() < 0.3 else "model.safetensors"
            if path not in fds or dice.random() < 0.02:
                log.append(f"{step} open {path}")
                if path in fds:
                    os.close(fds.pop(path))
                fds[path] = os.open(top / path, os.O_RDONLY | os.O_CLOEXEC)
            start, other = near(dice, places[path]), near(dice, places[path])
            # From edge to edge, or a few bytes, or far beyond the end.
            length = dice.choice((abs(other - start), dice.randrange(1, 9000), len(content(path)) + PAGE))
            length = max(1, min(length, _LENGTH_MAX))
            if dice.random() < 0.1:
                log.append(f"{step} advise {path} {start:#x}+{length:#x}")
                stir(dice, fds[path], start, length)
            if dice.random() < 0.05:
                log.append(f"{step} holes {path} {start:#x}")
                check_holes(fds[path], min(start, len(content(path))), content(path))
            way = dice.choice(WAYS)
            log.append(f"{step} {way.__name__} {path} {start:#x}..{start + length:#x} ({length:#x} bytes)")
            check(way, fds[path], start, length, content(path))
    finally:
        for fd in fds.values():
            os.close(fd)


def main(top: str, seed: str, steps: str) -> int:
    log: deque[str] = deque(maxlen=_LOGGED)
    try:
        exercise(Path(top), seed, int(steps), log)
    except BaseException as error:
        print(*log, f"seed {seed}: {error!r}", sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
