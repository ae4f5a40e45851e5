"""Mounts that storage makes itself: a filesystem at a directory, and away again."""

import ctypes
import errno
import os
import re
from pathlib import Path

from trainer.storage.errors import PlaceError

# Linux: include/uapi/linux/mount.h and include/linux/fs.h.
NOSUID, NODEV = 2, 4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def mount(source: str, at: Path, fstype: str, options: str = "", flags: int = NOSUID | NODEV) -> None:
    """Mount a filesystem at a directory, in this namespace; raise PlaceError where the kernel won't."""
    if _libc.mount(os.fsencode(source), os.fsencode(at), fstype.encode(), flags, os.fsencode(options)):
        code = ctypes.get_errno()
        hint = "; it takes root, or a user namespace" if code == errno.EPERM else ""
        raise PlaceError(f"mounting {fstype} ({source}) at {at}: {os.strerror(code)}{hint}")


def unmount(at: Path) -> None:
    """Take away the topmost mount at a directory, whoever still has files open there; raise PlaceError."""
    if _libc.umount2(os.fsencode(at), _MNT_DETACH | _UMOUNT_NOFOLLOW):
        code = ctypes.get_errno()
        raise PlaceError(f"unmounting {at}: {os.strerror(code)}; unmount it, then try again")


def mounted_below(directory: Path) -> list[Path]:
    """Return this namespace's mountpoints at and below a directory, in the order they were mounted."""
    top = os.path.realpath(directory)
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        escaped = os.fsdecode(line.split(b" ")[4])
        at = re.sub(r"\\([0-7]{3})", lambda digits: chr(int(digits[1], 8)), escaped)
        if at == top or at.startswith(f"{top}/"):
            found.append(Path(at))
    return found
