"""Mountpoints: directories made and removed again, and dead mounts found and cleared.

Nothing here touches a FUSE mount from this process: a dead daemon answers with an error, but a
stalled one never, and whoever waits for it can't be killed.
"""

import errno
import os
import re
import stat
from typing import Literal

from bdnfs.core.errors import MountError
from bdnfs.fs.mounts import Mount, resolve, top_mount, unmount

FUSE_FSTYPE = "fuse.bdnfs"
ASK_S = 5.0

Health = Literal["alive", "dead", "stalled"]

# statfs is never answered from the kernel's cache, as stat would be; but to anyone but the mount's
# user the kernel answers by itself.
_ASK = """
import os, sys
path, uid, gid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if os.geteuid() == 0 and uid:
    os.setgroups([]), os.setresgid(gid, gid, gid), os.setresuid(uid, uid, uid)
try:
    os.statvfs(path)
except OSError as error:
    sys.exit(error.errno)
"""


def ours(mount: Mount) -> bool:
    """Whether bdnfs made this mount: its FUSE view, or a snapshot's native tree."""
    root = mount.root.removesuffix("//deleted")  # the cache was deleted under the mount
    if mount.fstype == FUSE_FSTYPE or os.path.basename(os.path.dirname(root)) == "trees":
        return True
    # Linked anew since: what is mounted was moved away from under its name, and stays until it is unmounted.
    return re.search(r"/trash/[0-9a-f]{64}\.[0-9a-f]{8}$", root) is not None


def prepare(location: str) -> list[str]:
    """Make location an empty directory to mount on; return the directories made, deepest last.

    Raise MountError, with nothing made, where something is in the way: a file, something inside,
    another's mount, a dangling symbolic link, missing rights. A mount of ours is none.
    """
    where = f"mounting at {location}"
    mount = top_mount(location)
    if mount is not None:
        if ours(mount):
            return []
        raise MountError(
            f"{where}: {mount.fstype} ({mount.source}) is mounted there already; "
            "unmount it, or name another directory"
        )
    made: list[str] = []
    try:
        for path in _prefixes(os.path.abspath(location)):
            if _missing(path, where):
                _make(path, where)
                made.append(path)
        _check_empty(location, where)
    except BaseException:
        restore(made)
        raise
    return made


def absent(location: str) -> list[str]:
    """Return the directories that prepare would have to make for location, parents first."""
    return [path for path in _prefixes(os.path.abspath(location)) if not os.path.lexists(path)]


def restore(made: list[str]) -> None:
    """Remove again the directories that prepare made, those that are still empty."""
    for path in reversed(made):
        try:
            os.rmdir(path)
        except OSError:  # in use by now, or gone: not ours to care for
            continue


def health(location: str | Mount, timeout_s: float = ASK_S) -> Health:
    """Ask a FUSE mount's daemon for a sign of life, from a process of its own; waits timeout_s at most."""
    import subprocess  # late: only what looks dead is asked
    import sys
    import threading

    mount = location if isinstance(location, Mount) else top_mount(location)
    if mount is None:
        return "alive"
    options = dict(option.partition("=")[::2] for option in mount.super_options.split(","))
    user = options.get("user_id", "0"), options.get("group_id", "0")
    command = [sys.executable, "-I", "-S", "-c", _ASK, mount.mountpoint, *user]
    asking = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True)
    try:
        code = asking.wait(timeout_s)
    except subprocess.TimeoutExpired:
        # It ends when the daemon answers or its connection is aborted; until then nothing ends it.
        asking.kill()
        threading.Thread(target=asking.wait, daemon=True).start()
        return "stalled"
    except BaseException:
        asking.kill()
        threading.Thread(target=asking.wait, daemon=True).start()
        raise
    return "dead" if code in (errno.ENOTCONN, errno.ECONNABORTED) else "alive"


def stale(location: str | Mount, timeout_s: float = ASK_S) -> bool:
    """Whether location is a FUSE mount of bdnfs whose daemon is dead; never waits longer than timeout_s."""
    mount = location if isinstance(location, Mount) else top_mount(location)
    return mount is not None and mount.fstype == FUSE_FSTYPE and health(mount, timeout_s) == "dead"


def clear_stale(location: str | Mount, *, stalled: bool = False, timeout_s: float = ASK_S) -> bool:
    """Take away dead FUSE mounts of bdnfs on top of location; return whether there were any.

    stalled: those too whose daemon lives but hasn't answered for timeout_s; readers waiting for it
    get an error. Raise MountError where the rights are missing.
    """
    path = location.mountpoint if isinstance(location, Mount) else resolve(location)
    cleared = False
    while (mount := top_mount(path)) is not None and mount.fstype == FUSE_FSTYPE:
        state = health(mount, timeout_s)
        if state == "alive" or (state == "stalled" and not stalled):
            break
        if state == "stalled":
            from bdnfs.fs.connection import abort

            abort(mount)
        unmount(path, mount.mount_id)
        cleared = True
    return cleared


def _prefixes(path: str) -> list[str]:
    names = path.strip("/").split("/")
    return ["/" + "/".join(names[: count + 1]) for count in range(len(names))]


def _missing(path: str, where: str) -> bool:
    """Whether path is still to be made; raise MountError where it is there but no directory."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise MountError(
                f"{where}: {path} is a symbolic link to {os.readlink(path)}, which does not exist; "
                "make that directory, or remove the link"
            ) from None
        return True
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountError(f"{where}: {path} is a dead mount; `bdnfs unmount {path}` clears it") from None
        raise MountError(f"{where}: looking at {path}: {error.strerror}; name another directory") from None
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"{where}: {path} is a file; remove it, or name another directory")
    return False


def _make(path: str, where: str) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        return  # another bdnfs was faster
    except OSError as error:
        barred = f"no right to make it in {os.path.dirname(path)}; make it beforehand, or name another"
        reason = {
            errno.EROFS: "the filesystem is read-only; make the directory in the image or the volume itself",
            errno.EACCES: barred,
            errno.EPERM: barred,
            errno.ENOSPC: "the disk is full; free some space",
        }.get(error.errno or 0, f"{error.strerror}; name another directory")
        raise MountError(f"{where}: making the directory {path}: {reason}") from None


def _check_empty(location: str, where: str) -> None:
    try:
        with os.scandir(location) as entries:
            first = next(entries, None)
    except OSError as error:
        raise MountError(f"{where}: looking into it: {error.strerror}; name another directory") from None
    if first is not None:
        raise MountError(
            f"{where}: the directory is not empty ({first.name!r} is in it) and a mount would hide that; "
            "empty it, or name another directory"
        )
