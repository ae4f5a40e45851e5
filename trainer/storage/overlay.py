"""`writable` on request: a view of a mounted source that can be changed, the changes in the job's scratch."""

import os
from pathlib import Path

from trainer.storage.errors import PlaceError
from trainer.storage.mounting import mount

_LAYERS = ".writable"


def mount_overlay(location: Path, scratch: Path, name: str) -> None:
    """Make what stands at location writable: mount an overlay of it on top, its upper layer in scratch.

    location: a mounted source, in the caller's mount namespace, which is the job's own
    scratch:  where the job's scratch is mounted by now (any kind; a plain directory must not be an overlay itself)
    name:     unique in the job, for the layer's directory: scratch/.writable/<name>/
    The source itself is never changed; what is written counts against the scratch's cap (ENOSPC). Root writes
    wherever it likes; another user needs a chmod of what the source shows as read-only, as for any file of theirs.
    Raises PlaceError where the kernel can't.
    """
    if not name or "/" in name or name in (".", ".."):
        raise PlaceError(f"making {location} writable: {name!r} can't be a directory's name")
    layers = scratch / _LAYERS / name
    upper, work = layers / "upper", layers / "work"
    try:
        for directory in (scratch / _LAYERS, layers):
            directory.mkdir(mode=0o700, exist_ok=True)
        for directory in (upper, work):
            directory.mkdir(mode=0o755)
    except OSError as error:
        raise PlaceError(f"making {location} writable: {error.filename}: {error.strerror}") from None
    # Paths of any characters, and no longer than a page: through descriptors.
    opened = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (location, upper, work)]
    lower_fd, upper_fd, work_fd = (f"/proc/self/fd/{fd}" for fd in opened)
    options = f"lowerdir={lower_fd},upperdir={upper_fd},workdir={work_fd}"
    try:
        try:
            mount("writable", location, "overlay", options)
        except PlaceError:
            # In a user namespace, what the overlay notes about files goes into attributes a user may set.
            mount("writable", location, "overlay", f"{options},userxattr")
    finally:
        for fd in opened:
            os.close(fd)
