"""Every way to read a range of an open file that a test uses; each returns what one call of it gave.

None of them makes up for a short answer: that is what the tests look for. A way that the filesystem
does not have returns None.
"""

import contextlib
import errno
import mmap
import os
import random
from collections.abc import Callable

from tests.readers.contents import PAGE

Way = Callable[[int, int, int], bytes | None]


def pread(fd: int, offset: int, length: int) -> bytes:
    return os.pread(fd, length, offset)


def preadv(fd: int, offset: int, length: int) -> bytes:
    """Into three buffers of different sizes."""
    parts = [bytearray(length // 3), bytearray(length // 7), bytearray(length - length // 3 - length // 7)]
    count = os.preadv(fd, parts, offset)
    return b"".join(parts)[:count]


def seek_and_read(fd: int, offset: int, length: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, length)


def seek_and_readv(fd: int, offset: int, length: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    parts = [bytearray(length - length // 2), bytearray(length // 2)]
    count = os.readv(fd, parts)
    return b"".join(parts)[:count]


def mapped(fd: int, offset: int, length: int) -> bytes:
    """By a map of the pages around; what lies behind the file's end in its last page is zero."""
    size = os.fstat(fd).st_size
    length = max(0, min(length, size - offset))
    if not length:
        return b""
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    stop = min(-(-(offset + length) // PAGE) * PAGE, -(-size // PAGE) * PAGE)
    with mmap.mmap(fd, min(stop, size) - start, mmap.MAP_SHARED, mmap.PROT_READ, offset=start) as pages:
        return pages[offset - start : offset - start + length]


def direct(fd: int, offset: int, length: int) -> bytes | None:
    """Past the page cache, aligned as the kernel wants it; only the part that was asked for."""
    try:
        unbuffered = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise
    start = offset // PAGE * PAGE
    try:
        with mmap.mmap(-1, max(PAGE, -(-(offset + length - start) // PAGE) * PAGE)) as aligned:
            count = os.preadv(unbuffered, [aligned], start)
            return aligned[min(offset - start, count) : min(offset - start + length, count)]
    finally:
        os.close(unbuffered)


def sendfile(fd: int, offset: int, length: int) -> bytes:
    out = os.memfd_create("read")
    try:
        count = os.sendfile(out, fd, offset, length)
        return os.pread(out, count, 0)
    finally:
        os.close(out)


def buffered(fd: int, offset: int, length: int) -> bytes:
    """As Python's own files read: in pieces of their buffer, until all is here."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(offset)
        return file.read(length)


# Ways that leave the file's position alone: processes that share it may use them at once.
ALONE: tuple[Way, ...] = (pread, preadv, mapped, direct, sendfile)
WAYS: tuple[Way, ...] = (*ALONE, seek_and_read, seek_and_readv, buffered)


def stir(dice: random.Random, fd: int, offset: int, length: int) -> None:
    """Now and then tell the kernel what will or won't be wanted."""
    advice = dice.choice(
        (
            os.POSIX_FADV_DONTNEED,
            os.POSIX_FADV_WILLNEED,
            os.POSIX_FADV_RANDOM,
            os.POSIX_FADV_SEQUENTIAL,
            os.POSIX_FADV_NORMAL,
        )
    )
    os.posix_fadvise(fd, offset, length, advice)


def check(way: Way, fd: int, offset: int, length: int, expected: bytes) -> None:
    """Read by way, and raise AssertionError, saying what differs, where that is not as expected."""
    found = way(fd, offset, length)
    wanted = expected[offset : offset + length]
    if found is None or found == wanted:
        return
    if len(found) != len(wanted):
        raise AssertionError(f"{len(found)} bytes instead of {len(wanted)}")
    at = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    raise AssertionError(
        f"byte {offset + at} is {found[at]}, not {wanted[at]}; {sum(map(int.__ne__, found, wanted))} bytes are wrong"
    )


def check_holes(fd: int, offset: int, expected: bytes) -> None:
    """SEEK_DATA and SEEK_HOLE may call a hole only what is zero, and end at the file's end."""
    size = len(expected)
    data = hole = size
    with contextlib.suppress(OSError):  # ENXIO: nothing but a hole from here on
        data = os.lseek(fd, offset, os.SEEK_DATA)
    assert offset <= data <= size, f"SEEK_DATA from {offset} gave {data} of {size}"
    assert not any(expected[offset:data]), f"SEEK_DATA from {offset} gave {data}: a hole that is none"
    with contextlib.suppress(OSError):  # ENXIO: the end
        hole = os.lseek(fd, offset, os.SEEK_HOLE)
    assert offset <= hole <= size, f"SEEK_HOLE from {offset} gave {hole} of {size}"
