"""Memory that is there before a run begins: huge pages, set aside and used once.

A virtual machine gives its guest a page as that is first written, and takes free ones back within seconds. What this
costs a script that takes gigabytes is now this, now that, and has nothing to do with what is measured.
"""

import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import BenchmarkError, timed

_POOL = Path("/proc/sys/vm/nr_hugepages")
_MAP_HUGETLB = 0x40000  # Linux: include/uapi/asm-generic/mman.h
# glibc 2.35 and later: malloc takes huge pages of the usual size by mmap, and others where none is left.
_GLIBC = (2, 35)
_AIR_BYTES = 2 << 30  # for everybody else
_TUNABLE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}


@contextmanager
def set_aside(size_bytes: int) -> Iterator[dict[str, str]]:
    """Set this much aside as huge pages until the block ends; yield the variables by which a program's malloc takes it.

    Of 0 bytes there is nothing to set aside, and no variable. Raises BenchmarkError without root, without that
    much memory, with a kernel that has no huge pages, or with another C library.
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
    page_bytes = _meminfo("Hugepagesize")
    count = -(-size_bytes // page_bytes)
    _add(count)
    try:
        # In a process of its own: what uses them gives them back as it ends.
        timed([sys.executable, "-m", "benchmarks.memory", str(count), str(page_bytes)], os.environ)
        yield _TUNABLE
    finally:
        _add(-count)


def _add(count: int) -> None:
    """Change the machine's number of huge pages; others may have set some aside, too."""
    try:
        before = int(_POOL.read_text())
        _POOL.write_text(str(max(0, before + count)))
        added = int(_POOL.read_text()) - before
    except OSError as error:
        raise BenchmarkError(
            f"{_POOL}: can't be changed ({error.strerror}), which takes root, and not a container's; leave "
            "--huge-pages out"
        ) from error
    if added < count:
        _POOL.write_text(str(before))
        raise BenchmarkError(
            f"{added} of {count} huge pages are to be had, so scattered is what is free; "
            "`echo 1 > /proc/sys/vm/compact_memory` gathers it"
        )


def _meminfo(name: str) -> int:
    """Return one line of /proc/meminfo, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(
        f"/proc/meminfo names no {name}: this kernel has no huge pages; leave --huge-pages out"
    )


def _use_once(count: int, page_bytes: int) -> None:
    """Write to every page; end the process where they are not to be had."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB
    try:
        with mmap.mmap(-1, count * page_bytes, flags=flags) as memory:
            for start in range(0, count * page_bytes, page_bytes):
                memory[start] = 1
    except OSError as error:
        sys.exit(
            f"{count} huge pages were set aside and are not to be had ({error.strerror}); who else uses them?"
        )


if __name__ == "__main__":
    _use_once(*(int(word) for word in sys.argv[1:]))
