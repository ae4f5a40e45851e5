"""Writes and reads files in a job's storage, in a mount namespace of its own.

python -m benchmarks.storing HOME BYTES REPEATS     prints one JSON object

HOME/node is a plain directory, HOME/trainer has a training cache, HOME/job a scratch that is mounted here alone.
"""

import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.storage.scratch import clear_scratch, make_scratch
from trainer.storage.training_cache import CACHE_BYTES_MAX, project_cache, watched

BLOCK_BYTES = 4 << 20
# A filesystem's own tables, and a file that is replaced while its old blocks go.
_SCRATCH_FACTOR, _SCRATCH_BYTES_MIN = 3, 64 << 20
# Content that nothing below could compress or share.
_CONTENT_BYTES = 64 << 20


class Bench:
    """One file, written and read in each way; each call returns bytes per second."""

    def __init__(self, path: Path, size_bytes: int, content: memoryview) -> None:
        self._path, self._size, self._content = path, size_bytes, content
        # O_DIRECT wants memory at a page's begin.
        self._buffer = mmap.mmap(-1, BLOCK_BYTES)

    def write(self) -> float:
        return self._timed(lambda: self._write(0))

    def write_direct(self) -> float:
        return self._timed(lambda: self._write(os.O_DIRECT))

    def read(self) -> float:
        self._forget()
        return self._timed(lambda: self._read(0))

    def read_cached(self) -> float:
        self._read(0)
        return self._timed(lambda: self._read(0))

    def read_direct(self) -> float:
        self._forget()
        return self._timed(lambda: self._read(os.O_DIRECT))

    def remove(self) -> None:
        """Take the file away, and let the disk have what it is owed: it is not the next one's."""
        self._path.unlink(missing_ok=True)
        os.sync()

    def _timed(self, act: Callable[[], None]) -> float:
        began_s = time.perf_counter()
        act()
        return self._size / (time.perf_counter() - began_s)

    def _write(self, flags: int) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600)
        try:
            for place in range(0, self._size, BLOCK_BYTES):
                start = place % _CONTENT_BYTES
                piece = self._content[start : start + BLOCK_BYTES]
                if flags:
                    self._buffer[:] = piece
                if os.pwrite(fd, self._buffer if flags else piece, place) != BLOCK_BYTES:
                    raise OSError(f"{self._path}: a short write")
            os.fsync(fd)
        finally:
            os.close(fd)

    def _read(self, flags: int) -> None:
        fd = os.open(self._path, os.O_RDONLY | flags)
        try:
            place = 0
            while count := os.preadv(fd, [self._buffer], place):
                place += count
            if place != self._size:
                raise OSError(f"{self._path}: {place} bytes instead of {self._size}")
        finally:
            os.close(fd)

    def _forget(self) -> None:
        fd = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def measure(home: Path, size_bytes: int, repeats: int) -> dict[str, Any]:
    """Return, for each place, every single figure in the order it was taken; bytes per second."""
    content = memoryview(random.Random(0).randbytes(_CONTENT_BYTES))
    job, node, scratch_at = home / "job", home / "node", home / "scratch"
    for directory in (job, node, scratch_at):
        directory.mkdir()
    scratch = make_scratch(job, max(_SCRATCH_FACTOR * size_bytes, _SCRATCH_BYTES_MIN))
    cache = project_cache(home / "trainer", "benchmark")
    try:
        places = {"node": node, "training_cache": cache, "scratch": scratch.mount(scratch_at)}
        benches = {name: Bench(path / "file", size_bytes, content) for name, path in places.items()}
        found: dict[str, dict[str, list[float]]] = {name: {} for name in benches}
        # As in a job, somebody looks at the training cache's size meanwhile.
        with watched(cache, CACHE_BYTES_MAX, lambda line: None):
            for repeat in range(repeats):
                # Who is first changes: what the disk still does is not always the same one's.
                order = list(benches.items())
                for name, bench in order[repeat % 3 :] + order[: repeat % 3]:
                    for way in ("write_direct", "write", "read", "read_cached", "read_direct"):
                        if way.startswith("write"):
                            bench.remove()
                        found[name].setdefault(way, []).append(getattr(bench, way)())
                    bench.remove()
        return {"raw": found, "scratch": {"kind": scratch.kind, "said": scratch.said}}
    finally:
        clear_scratch(job)


def main() -> None:
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))


if __name__ == "__main__":
    main()
