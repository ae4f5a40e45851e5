"""Who uses a mount: open files, working directories, mapped files of every process that can be seen.

Nothing here asks a FUSE daemon anything: it may be stopped.
"""

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

from bdnfs.fs.mounts import Mount

_libc = ctypes.CDLL(None, use_errno=True)
# Linux: include/uapi/linux/fcntl.h, stat.h (5.8 or newer for the mount's id)
_AT_FDCWD, _AT_NO_AUTOMOUNT, _AT_STATX_DONT_SYNC = -100, 0x800, 0x4000
_STATX_MNT_ID = 0x1000
_STATX_BYTES, _MASK_AT, _DEVICE_AT, _MNT_ID_AT = 256, 0, 136, 144


class _Place(NamedTuple):
    """Where an open file lies. mount_id is -1 where the kernel doesn't tell."""

    mount_id: int
    device: str


def users_of(
    mount: Mount | None, *, device: str | None = None, but: frozenset[int] = frozenset()
) -> list[str]:
    """Name the processes that keep mount busy, as `python (pid 123)`; `but` are pids to leave out.

    device: those too that use anything on this device (`0:58`), through whatever mount, one that was
    detached since or one of another namespace.
    """
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in but and int(name) != os.getpid():
            try:
                if _uses(name, mount, device):
                    found.append(f"{Path(f'/proc/{name}/comm').read_text().strip()} (pid {name})")
            except OSError:
                continue
    return found


def _uses(pid: str, mount: Mount | None, device: str | None) -> bool:
    links = [f"/proc/{pid}/{link}" for link in ("cwd", "root", "exe")]
    links += [entry.path for entry in os.scandir(f"/proc/{pid}/fd")]
    for link in links:
        place = _place(link)
        if place is not None and ((mount and place.mount_id == mount.mount_id) or place.device == device):
            return True
    below = mount.mountpoint.rstrip("/") + "/" if mount else None
    mapped = f" {_as_in_maps(device)} " if device else None
    maps = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")
    return bool((below and below in maps) or (mapped and mapped in maps))


def _place(link: str) -> _Place | None:
    """Return where what a link of /proc leads to lies, from what the kernel knows; None where it is gone."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    flags = _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    if _libc.statx(_AT_FDCWD, link.encode(), flags, _STATX_MNT_ID, buffer):
        return None
    (mask,) = memoryview(buffer).cast("B")[_MASK_AT : _MASK_AT + 4].cast("I")
    major, minor = memoryview(buffer).cast("B")[_DEVICE_AT : _DEVICE_AT + 8].cast("I")
    (mount_id,) = memoryview(buffer).cast("B")[_MNT_ID_AT : _MNT_ID_AT + 8].cast("Q")
    return _Place(mount_id if mask & _STATX_MNT_ID else -1, f"{major}:{minor}")


def _as_in_maps(device: str) -> str:
    """Write a device as proc_pid_maps(5) does: `00:3a`."""
    major, minor = map(int, device.split(":"))
    return f"{major:02x}:{minor:02x}"
