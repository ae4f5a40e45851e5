"""Memory that is there before a run begins: huge pages, set aside and used once.

A virtual machine gives its guest a page as that is first written, and takes free ones back within seconds. What this
costs a script that takes gigabytes is now this, now that, and has nothing to do with what is measured.
"""

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import ROOT, BenchmarkError

_POOL = Path("/proc/sys/vm/nr_hugepages")
_MAP_HUGETLB = 0x40000  # Linux: include/uapi/asm-generic/mman.h
# glibc 2.35 and later: malloc takes huge pages of the usual size by mmap, and others where none is left.
_GLIBC = (2, 35)
_AIR_BYTES = 2 << 30  # for everybody else
_TUNABLE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}


@contextmanager
def huge_pages(size_bytes: int) -> Iterator[dict[str, str]]:
    """Set this much aside until the block ends; yield the variables by which a program's malloc takes it.

    Of 0 bytes there is nothing to set aside, and no variable. Raises BenchmarkError without root, without that
    much memory, or with another C library.
    """
    if not size_bytes:
        yield {}
        return
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "another C library").partition(" ")
    if name != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < _GLIBC:
        raise BenchmarkError(f"--huge-pages needs glibc 2.35 or later, and this is {name} {version}")
    # Asked for more than there is, the kernel first drives everybody else out.
    if (free_bytes := _meminfo("MemAvailable")) < size_bytes + _AIR_BYTES:
        raise BenchmarkError(
            f"{size_bytes / 1e9:.1f} GB are to be set aside, and {free_bytes / 1e9:.1f} GB are available; end what "
            "uses memory, or leave --huge-pages out"
        )
    count = -(-size_bytes // _page_bytes())
    _add(count)
    try:
        _use_once(count)
        yield _TUNABLE
    finally:
        _add(-count)


def _add(count: int) -> None:
    """Change the machine's number of huge pages; others may have set some aside, too."""
    before = int(_POOL.read_text())
    try:
        _POOL.write_text(str(max(0, before + count)))
    except PermissionError as error:
        raise BenchmarkError(f"{_POOL}: only root sets huge pages aside; leave --huge-pages out") from error
    if (added := int(_POOL.read_text()) - before) < count:
        _POOL.write_text(str(before))
        raise BenchmarkError(
            f"{added} of {count} huge pages are to be had, so scattered is what is free; "
            "`echo 1 > /proc/sys/vm/compact_memory` gathers it"
        )


def _use_once(count: int) -> None:
    """Write to every page, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", str(count * _page_bytes()), str(_page_bytes())]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise BenchmarkError(
            f"{count} huge pages were set aside and could not be used; does something else use them?"
        )


def _page_bytes() -> int:
    return _meminfo("Hugepagesize")


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def _touch(size_bytes: int, page_bytes: int) -> None:
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB) as memory:
        for start in range(0, size_bytes, page_bytes):
            memory[start] = 1


if __name__ == "__main__":
    _touch(*(int(word) for word in sys.argv[1:]))
