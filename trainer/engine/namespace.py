"""The job's mount namespace, and binds in it."""

import ctypes
import errno
import os
from pathlib import Path

from trainer.errors import PlaceError

# Linux: include/uapi/linux/sched.h and mount.h.
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
_MS_BIND, _MS_REC, _MS_SLAVE = 4096, 16384, 1 << 19
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def unshare_mounts(*, user: bool) -> None:
    """Move this process into a mount namespace of its own; nothing mounted in it shows outside.

    user: in a user namespace, too, with the same uid and gid, where that grants the right to mount.
    Raises PlaceError where the kernel refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    _unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0))
    if user:
        try:
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{uid} {uid} 1"),
                ("gid_map", f"{gid} {gid} 1"),
            ):
                Path(f"/proc/self/{name}").write_text(text)
        except OSError as error:
            raise PlaceError(f"mapping uid {uid} into a user namespace: {error.strerror}") from None
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)


def unshare_processes() -> None:
    """Have the next child of this process be the first of a PID namespace: when it ends, so does all in it."""
    _unshare(CLONE_NEWPID)


def mount_proc() -> None:
    """Show this PID namespace's own processes at /proc, in a mount namespace of this process's own."""
    _unshare(CLONE_NEWNS)
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def bind(directory: Path, location: str) -> None:
    """Show directory at location, as writable as it is; raise PlaceError where that fails."""
    _mount(str(directory), location, None, _MS_BIND | _MS_REC)


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        raise _failed("making a namespace", "of the job's own", ctypes.get_errno())


def _mount(source: str | None, target: str, fstype: str | None, flags: int) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, fstype)]
    if _libc.mount(*encoded, flags, None):
        raise _failed(f"mounting {source or 'the root'} at", target, ctypes.get_errno())


def _failed(doing: str, what: str, code: int) -> PlaceError:
    hint = "; it takes root, or user namespaces (user.max_user_namespaces)" if code == errno.EPERM else ""
    return PlaceError(f"{doing} {what}: {os.strerror(code)}{hint}")
