"""Reads one file from begin to end, 1 MiB at a time, in a process of its own.

python -m benchmarks.reading FILE [--once]     prints {"bytes", "seconds"}
"""

import argparse
import json
import os
import time
from pathlib import Path

READ_BYTES = 1 << 20
# One pass over 1.19 GB of page cache takes 0.1 s, little against a scheduler's whims.
HOT_PASSES = 3


def read_file(path: Path, passes: int) -> tuple[int, float]:
    """Return the bytes read and the seconds it took, opening included."""
    buffer = [bytearray(READ_BYTES)]
    total = 0
    began_s = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    for _ in range(passes):
        offset = 0
        while count := os.preadv(fd, buffer, offset):
            offset += count
        total += offset
    seconds = time.perf_counter() - began_s
    os.close(fd)
    return total, seconds


def drop_pages(path: Path) -> None:
    """Have the page cache forget the file, as far as nobody has it mapped."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--once", action="store_true", help=f"instead of {HOT_PASSES} times: for a cold file")
    options = parser.parse_args()
    total, seconds = read_file(options.file, 1 if options.once else HOT_PASSES)
    print(json.dumps({"bytes": total, "seconds": seconds}))


if __name__ == "__main__":
    main()
