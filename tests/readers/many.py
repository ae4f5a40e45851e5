"""One of several processes that read a mount at random and compare every byte, for as long as told.

Usage: python -m tests.readers.many TOP CONTROL NUMBER SEED DEVICE

DEVICE is st_dev of the mount as it was at first. CONTROL/<NUMBER> counts what was done: on what was
mounted at first (`first`), on files kept open from it after something else came in its place (`kept`),
on that (`then`), and in forked children (`forked`). Ends when CONTROL/stop appears.
"""

import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

from tests.readers.contents import READ, SIZES, content
from tests.readers.ways import ALONE, WAYS, Way, check, check_holes, stir

_OPEN_MAX, _KEPT = 8, 3
_CHILD_STEPS = 6
_REPORT_STEPS = 20


class Reader:
    """The files it has open, and the dice that decide what it does next."""

    def __init__(self, top: Path, seed: str, device: int) -> None:
        self.top, self.seed, self.device = top, seed, device
        self.dice = random.Random(seed)
        self.open: list[tuple[int, str]] = []
        self.children: list[int] = []
        self.done: Counter[str] = Counter()
        self.step = 0
        self.doing = "nothing yet"

    def run(self, stop: Path, report: Path) -> None:
        while not stop.exists():
            self.turn()
            if self.step % _REPORT_STEPS == 0:
                self._report(report)
        while self.children:
            self._reap(0)
        self._report(report)

    def _report(self, report: Path) -> None:
        written = report.with_suffix(".new")
        written.write_text(json.dumps(self.done))
        written.rename(report)

    def turn(self) -> None:
        """Do one thing."""
        self.step += 1
        self._reap(os.WNOHANG)
        what = self.dice.choices(
            (
                self.read,
                self.open_one,
                self.close_one,
                self.list_one,
                self.stat_one,
                self.read_all,
                self.fork,
            ),
            (60, 8, 6, 3, 6, 3, 2),
        )[0]
        what()

    # -- what is done ---------------------------------------------------------------------------------

    def open_one(self) -> None:
        path = self.dice.choice(READ)
        self.doing = f"opening {path}"
        self.open.append((os.open(self.top / path, os.O_RDONLY | os.O_CLOEXEC), path))
        if len(self.open) > _OPEN_MAX:
            self.close_one()

    def close_one(self) -> None:
        # What was open before the hand-off is worth more than what came after it.
        if len(self.open) > _KEPT:
            fd, _ = self.open.pop(self.dice.randrange(_KEPT, len(self.open)))
            os.close(fd)

    def read(self, ways: tuple[Way, ...] = WAYS) -> None:
        if not self.open:
            self.open_one()
        fd, path = self.dice.choice(self.open)
        expected = content(path)
        offset = self.dice.randrange(len(expected) + 5000)
        length = self.dice.choice((1, 100, 4096, 70_000, 1 << 20, 3 << 20))
        if self.dice.random() < 0.1:
            stir(self.dice, fd, offset, length)
        # Looking for holes seeks: a child would move the position under a parent between its seek and its read.
        if ways is not ALONE and self.dice.random() < 0.05:
            self.doing = f"holes of {path} from {offset}"
            check_holes(fd, min(offset, len(expected)), expected)
        way = self.dice.choice(ways)
        self.doing = f"{way.__name__} of {path}, {length} bytes from {offset}"
        check(way, fd, offset, length, expected)
        self._count(fd)

    def read_all(self) -> None:
        """From the first byte to the last, as most do."""
        path = self.dice.choice(READ)
        self.doing = f"all of {path}"
        expected, size = content(path), self.dice.choice((4096, 100_000, 1 << 20))
        with open(self.top / path, "rb", buffering=0) as file:
            at = 0
            while data := file.read(size):
                assert len(data) == min(size, len(expected) - at), f"{len(data)} bytes from {at} of {path}"
                assert data == expected[at : at + len(data)], f"{path} differs in {len(data)} bytes from {at}"
                at += len(data)
            assert at == len(expected), f"{path} ended after {at} of {len(expected)} bytes"
            self._count(file.fileno())

    def stat_one(self) -> None:
        path = self.dice.choice(READ)
        self.doing = f"stat of {path}"
        status = os.stat(self.top / path)
        assert (status.st_size, oct(status.st_mode)) == (SIZES[path], "0o100444"), status

    def list_one(self) -> None:
        directory = self.dice.choice(("", "many", "deep", "deep/er"))
        self.doing = f"listing {directory or '.'}"
        below = [path.removeprefix(f"{directory}/") for path in SIZES if path.startswith(directory)]
        found = sorted(os.listdir(self.top / directory))
        assert found == sorted({path.partition("/")[0] for path in below}), found

    def fork(self) -> None:
        """A child goes on with the open files, and may outlive a few turns of its parent."""
        seed = f"{self.seed}/{self.step}"
        pid = os.fork()
        if pid:
            self.children.append(pid)
            return
        code = 1
        try:
            self.children.clear()
            self.seed, self.dice = seed, random.Random(seed)
            for self.step in range(_CHILD_STEPS):
                self.read(ALONE)
            code = 0
        except BaseException as error:
            self.complain(error)
        finally:
            os._exit(code)

    def _reap(self, how: int) -> None:
        for pid in list(self.children):
            found, status = os.waitpid(pid, how)
            if found:
                self.children.remove(pid)
                assert status == 0, f"the child {pid} ended with {os.waitstatus_to_exitcode(status)}"
                self.done["forked"] += 1

    def _count(self, fd: int) -> None:
        if os.fstat(fd).st_dev != self.device:
            self.done["then"] += 1
        elif os.stat(self.top).st_dev != self.device:
            self.done["kept"] += 1
        else:
            self.done["first"] += 1

    def complain(self, error: BaseException) -> None:
        where = f"seed {self.seed}, step {self.step}, at {time.time():.3f}"
        print(f"{where}: {self.doing}: {error!r}", file=sys.stderr, flush=True)


def main(top: str, control: str, number: str, seed: str, device: str) -> int:
    reader = Reader(Path(top), f"{seed}/{number}", int(device))
    try:
        reader.run(Path(control) / "stop", Path(control) / number)
    except BaseException as error:
        reader.complain(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
