"""A file as a block device, for as long as somebody uses it: then the kernel lets go of it by itself."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.storage.errors import PlaceError

# Linux: include/uapi/linux/loop.h.
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_AUTOCLEAR, _DIRECT_IO = 4, 16
_BLOCK_BYTES = 4096
# Another process may take the free device between asking and having.
_TRIES = 64


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """Yield the path of a device that is image, until the block and the last mount of it have ended.

    Reads and writes go to the image directly where its filesystem lets them, so that its pages are in memory once.
    Raises PlaceError where there is no device to be had.
    """
    doing = f"making {image} a block device"
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            try:
                number = _free()
                device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise PlaceError(f"{doing}: {error.filename or 'loop'}: {error.strerror}") from None
            try:
                if _configure(device, backing, image):
                    yield f"/dev/loop{number}"
                    return
            except OSError as error:
                raise PlaceError(f"{doing}: {error.strerror}") from None
            finally:
                os.close(device)
        raise PlaceError(f"{doing}: every loop device was taken by others {_TRIES} times; try again")
    finally:
        os.close(backing)


def is_backed_by(image: Path) -> bool:
    """Say whether some loop device still has image, deleted or not."""
    for named in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = named.read_text().rstrip("\n").removesuffix(" (deleted)")
        except OSError:
            continue  # it was let go of just now
        if backing == str(image):
            return True
    return False


def _free() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _GET_FREE)
    finally:
        os.close(control)


def _configure(device: int, backing: int, image: Path) -> bool:
    """Let device be the open file backing; return False where somebody else was first."""
    for flags in (_AUTOCLEAR | _DIRECT_IO, _AUTOCLEAR):
        # struct loop_config: fd, block_size, struct loop_info64, reserved.
        info = struct.pack(
            "=5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(image)[:63], b"", b"", 0, 0
        )
        config = struct.pack("=2I", backing, _BLOCK_BYTES) + info + bytes(64)
        try:
            fcntl.ioctl(device, _CONFIGURE, config)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            if error.errno != errno.EINVAL or not flags & _DIRECT_IO:
                raise
        else:
            return True
    return False
