"""A FUSE connection's settings in the kernel: read-ahead, requests in flight, its end."""

import logging
import os
from collections.abc import Callable

from bdnfs.fs.mounts import Mount, open_filesystem

log = logging.getLogger(__name__)

# 128 KiB requests give a third of the speed of 1 MiB ones, and only read-ahead makes those.
READ_AHEAD_KIB = 1024
# Read-ahead that waits for missing chunks must not hold up that of other readers (default: 12).
BACKGROUND_MAX = 128
_FUSE_DEVICE = os.makedev(10, 229)  # Linux: Documentation/admin-guide/devices.txt


def device_problem() -> str:
    """Say why /dev/fuse can't be used; "" where it can."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    try:
        return "" if os.fstat(fd).st_rdev == _FUSE_DEVICE else "/dev/fuse is not the FUSE device"
    finally:
        os.close(fd)


def raise_read_ahead(mount: Mount, kib: int = READ_AHEAD_KIB) -> bool:
    """Set how far the kernel reads ahead on a FUSE mount; return whether this process has the right to."""
    done = _write(os.open, f"/sys/class/bdi/{mount.device}/read_ahead_kb", str(kib))
    return (
        set_connection(mount, "max_background", str(BACKGROUND_MAX))
        and set_connection(mount, "congestion_threshold", str(BACKGROUND_MAX * 3 // 4))
        and done
    )


def abort(mount: Mount) -> bool:
    """Cut a FUSE mount off from its daemon, which frees whoever waits for it; whether that was allowed."""
    return set_connection(mount, "abort", "1")


def set_connection(mount: Mount, name: str, value: str) -> bool:
    """Write one setting of a FUSE connection, whether or not fusectl is mounted; whether that was allowed."""
    try:
        root = open_filesystem("fusectl")
    except OSError:
        return _write(os.open, f"/sys/fs/fuse/connections/{mount.minor}/{name}", value)
    try:
        return _write(lambda path, flags: os.open(path, flags, dir_fd=root), f"{mount.minor}/{name}", value)
    finally:
        os.close(root)


def _write(opener: Callable[[str, int], int], path: str, value: str) -> bool:
    try:
        fd = opener(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        log.debug("%s stays as it is: %s", path, error.strerror)
        return False
    try:
        os.write(fd, value.encode())
    except OSError as error:
        log.debug("%s can't be %s: %s", path, value, error.strerror)
        return False
    finally:
        os.close(fd)
    return True
