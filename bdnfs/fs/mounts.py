"""Mounts: the kernel's table of them, and the system calls that make and take them.

On the way of a cache hit, so: the standard library only, and as little of it as will do. A mount
is always taken away by a descriptor of exactly that mount, never by its path, for another one may
have come on top meanwhile.
"""

import ctypes
import errno
import os
from typing import NamedTuple

from bdnfs.core.errors import MountError

# The newer calls have one number on every architecture (Linux: scripts/syscall.tbl).
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432

# Linux: include/uapi/linux/mount.h and fcntl.h.
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_FSCONFIG_CREATE = 6
_MOVE_FROM_EMPTY, _MOVE_TO_EMPTY, _MOVE_BENEATH = 0x4, 0x40, 0x200
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 2, 4, 32, 4096, 16384
_MS_PRIVATE, _MS_SLAVE = 1 << 18, 1 << 19
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000

# A remount inside a user namespace must repeat these where the mount has them already.
_LOCKED_FLAGS = _MS_NOSUID | _MS_NODEV | 8 | 1024 | 2048  # and noexec, noatime, nodiratime

_HINTS = {
    errno.EPERM: "mounting needs root or CAP_SYS_ADMIN; `bdnfs run` mounts in a namespace of its own, "
    "`bdnfs stage` needs no mount, `bdnfs doctor` says what this machine can do",
    errno.EACCES: "a directory on the way may not be entered; check its permissions",
    errno.ENOENT: "the directory is gone; mount again",
    errno.ENOSPC: "the kernel's limit of mounts is reached; unmount some, or raise fs.mount-max",
    errno.ENOTDIR: "a directory can be mounted on a directory only",
}


class BeneathUnsupportedError(MountError):
    """The kernel can't mount beneath what is mounted here; bind on top instead."""


class Mount(NamedTuple):
    """One line of mountinfo (proc_pid_mountinfo(5)), its octal escapes decoded."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mountpoint: str
    fstype: str
    source: str
    options: str
    super_options: str

    @property
    def minor(self) -> int:
        """The minor device number: a FUSE connection's name under /sys/fs/fuse/connections."""
        return int(self.device.partition(":")[2])


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def mount_table(pid: int | str = "self") -> list[Mount]:
    """Return the mounts that process pid sees; raise OSError as open and read do."""
    with open(f"/proc/{pid}/mountinfo", "rb", buffering=0) as file:
        content = file.readall() or b""
    return [_parsed(line) for line in os.fsdecode(content).splitlines()]


def resolve(location: str) -> str:
    """Return location's absolute path without symbolic links, never touching what is mounted there."""
    path = os.path.abspath(location)
    for _ in range(40):
        parent = os.path.realpath(os.path.dirname(path))
        path = os.path.join(parent, os.path.basename(path)) if path != "/" else path
        try:
            # On a mountpoint this fails with EINVAL without asking the filesystem mounted there.
            path = os.path.normpath(os.path.join(parent, os.readlink(path)))
        except OSError:
            return path
    raise MountError(f"{location}: has more than 40 symbolic links in a row; name the directory itself")


def top_mount(location: str, table: list[Mount] | None = None) -> Mount | None:
    """Return the mount that one sees at location, or None where location is no mountpoint.

    Walks the table as the kernel walks the path: a mount hidden under another is not found.
    """
    path = resolve(location)
    children: dict[tuple[int, str], Mount] = {}
    mounts = mount_table() if table is None else table
    ids = {mount.mount_id for mount in mounts}
    for mount in mounts:
        parent_id = mount.parent_id if mount.parent_id in ids and mount.parent_id != mount.mount_id else 0
        children[parent_id, mount.mountpoint] = mount
    current: Mount | None = None
    prefix = ""
    for part in [""] if path == "/" else path.split("/"):
        prefix = f"{prefix}/{part}" if prefix != "/" else f"/{part}"
        while under := children.get((current.mount_id if current else 0, prefix)):
            current = under
    return current if current is not None and current.mountpoint == path else None


def hold(path: str) -> int:
    """Return an O_PATH descriptor of what is mounted at path; asks nothing of a FUSE daemon.

    While it is open the mount counts as busy for a plain umount.
    """
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError as error:
        raise _mount_error("opening the mountpoint", path, error.errno or 0) from None


def mount_id_of(fd: int) -> int:
    """Return the id of the mount that fd was opened on (proc_pid_fdinfo(5), mnt_id)."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return int(line[7:])
    raise MountError(f"/proc/self/fdinfo/{fd}: has no mnt_id; bdnfs needs /proc of Linux 3.15 or newer")


def detach(fd: int) -> None:
    """Take away exactly the mount fd is the root of; files open on it live on.

    A mount that is gone already is no error. Raise MountError where another mount lies on top:
    umount2 takes the topmost one even through a descriptor (Linux: fs/namei.c, LOOKUP_MOUNTPOINT).
    """
    mount_id = mount_id_of(fd)
    table = mount_table()
    mount = next((mount for mount in table if mount.mount_id == mount_id), None)
    if mount is None:
        return
    for other in table:
        if other.parent_id == mount_id and other.mountpoint == mount.mountpoint:
            raise MountError(
                f"unmounting {mount.mountpoint}: {other.fstype} ({other.source}) was mounted on top by "
                "somebody else; unmount that one first"
            )
    if _libc.umount2(f"/proc/self/fd/{fd}".encode(), _MNT_DETACH):
        raise _mount_error("unmounting", mount.mountpoint, ctypes.get_errno())


def unmount(location: str, expected_id: int) -> None:
    """Take away the mount expected_id at location; raise MountError where another one is on top."""
    fd = hold(location)
    try:
        found = mount_id_of(fd)
        if found != expected_id:
            raise MountError(
                f"unmounting {location}: expected mount {expected_id} on top, found mount {found} "
                "of somebody else; unmount that one first"
            )
        detach(fd)
    except MountError:
        mount = top_mount(location)
        if os.geteuid() == 0 or mount is None or mount.mount_id != expected_id or not _fusermount(location):
            raise
    finally:
        os.close(fd)


def bind(tree: str, location: str) -> None:
    """Show directory tree at location: read-only, nosuid, nodev; raise MountError where that fails."""
    try:
        clone = _clone(tree)
    except NotImplementedError:
        _bind_classic(tree, location)
        return
    try:
        _move(clone, location, 0)
    finally:
        os.close(clone)


def bind_beneath(tree: str, location: str) -> None:
    """Bind as bind does, but beneath what is mounted at location (Linux 6.5 or newer).

    Raise BeneathUnsupportedError where the kernel can't, MountError for anything else.
    """
    try:
        clone = _clone(tree)
    except NotImplementedError:
        raise BeneathUnsupportedError(f"{location}: no open_tree here; bind on top") from None
    try:
        _move(clone, location, _MOVE_BENEATH)
    finally:
        os.close(clone)


def move(mount_fd: int, to_fd: int) -> None:
    """Move the mount that mount_fd is the root of onto the directory to_fd."""
    flags = _MOVE_FROM_EMPTY | _MOVE_TO_EMPTY
    if _libc.syscall(_MOVE_MOUNT, mount_fd, b"", to_fd, b"", flags):
        raise _mount_error("moving a mount onto", _shown(to_fd), ctypes.get_errno())


def make_private(fd: int) -> None:
    """Stop mounts on top of the mount fd is the root of from spreading to its peers."""
    if _libc.mount(None, f"/proc/self/fd/{fd}".encode(), None, _MS_PRIVATE, None):
        raise _mount_error("making private", _shown(fd), ctypes.get_errno())


def unshare(user: bool) -> None:
    """Move this process into a mount namespace of its own; nothing mounted in it spreads out.

    user: into a user namespace too, with the same uid and gid, where that grants the right to
    mount; only a process with one thread can. Raise MountError where the kernel refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if user else 0)):
        code = ctypes.get_errno()
        kind = "user and mount namespace" if user else "mount namespace"
        hint = "see user.max_user_namespaces and kernel.unprivileged_userns_clone" if user else "run as root"
        raise MountError(
            f"making a {kind}: {os.strerror(code)}; {hint}, or use `bdnfs stage`, which needs no mount"
        )
    if user:
        try:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{uid} {uid} 1")
            _write("/proc/self/gid_map", f"{gid} {gid} 1")
        except OSError as error:
            raise MountError(
                f"mapping uid {uid} into a user namespace: {error.strerror}; use `bdnfs stage` instead"
            ) from None
    if _libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None):
        raise _mount_error("making private all mounts under", "/", ctypes.get_errno())


def open_filesystem(fstype: str) -> int:
    """Return a descriptor of the root of a kernel filesystem (fusectl, …) that is mounted nowhere.

    Raise OSError where the right or the system calls (Linux 5.2) are missing.
    """
    context = int(_libc.syscall(_FSOPEN, fstype.encode(), 1))
    if context < 0:
        raise OSError(ctypes.get_errno(), f"fsopen {fstype}")
    try:
        root = -1
        if not _libc.syscall(_FSCONFIG, context, _FSCONFIG_CREATE, None, None, 0):
            root = int(_libc.syscall(_FSMOUNT, context, 1, 0))
        if root < 0:
            raise OSError(ctypes.get_errno(), f"fsmount {fstype}")
        return root
    finally:
        os.close(context)


class Scan(NamedTuple):
    """What one look into every mount namespace found.

    roots:    the roots of all mounts seen
    complete: every process that /proc lists could be asked
    machine:  /proc lists every process there is (it is that of the first PID namespace)
    seen:     the mount namespaces, as in `mnt:[4026531841]`
    """

    roots: frozenset[str]
    complete: bool
    machine: bool
    seen: frozenset[str] = frozenset()

    def has_root(self, suffix: str) -> bool:
        """Whether the directory whose path ends with suffix, or something in it, is mounted."""
        suffix = suffix.rstrip("/")
        return any(root.endswith(suffix) or f"{suffix}/" in root for root in self.roots)


def namespaces() -> Scan:
    """Read the mounts of every mount namespace that a process is in, each once."""
    seen: set[str] = set()
    asked: set[str] = set()
    kept: dict[str, str] = {}
    roots: set[str] = set()
    complete = True
    # Until no new process shows up: one may have passed its mounts on to a child and ended.
    while pids := {pid for pid in os.listdir("/proc") if pid.isdigit()} - asked:
        asked |= pids
        # Ourselves first: what /proc shows of others' files may be barred even to root.
        for pid in sorted(pids, key=str(os.getpid()).__ne__):
            try:
                namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            except OSError:  # another user's: its mountinfo may be readable all the same
                namespace = pid
            if namespace in seen:
                continue
            try:
                table = _table_of(pid)
            except (FileNotFoundError, ProcessLookupError):  # it ended
                continue
            except OSError:
                complete = False
                continue
            seen.add(namespace)
            roots.update(mount.root.removesuffix("//deleted") for mount in table)
            for mount in table:
                if mount.fstype == "nsfs" and mount.root.startswith("mnt:"):
                    kept.setdefault(mount.root, f"/proc/{pid}/root{mount.mountpoint}")
    for namespace, path in kept.items():
        # A file can keep a mount namespace without any process in it (`unshare --mount=FILE`).
        if namespace not in seen:
            table = _table_within(path)
            complete = complete and bool(table)
            roots.update(mount.root.removesuffix("//deleted") for mount in table)
    return Scan(frozenset(roots), complete, sees_every_process(), frozenset(seen) | kept.keys())


def _table_of(pid: str) -> list[Mount]:
    try:
        return mount_table(pid)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # A process whose first thread has ended; the others, if any, hold the namespace.
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            return mount_table(f"{pid}/task/{thread}")
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ESRCH):
                raise
    return []


def _table_within(namespace_file: str) -> list[Mount]:
    """Return the mounts of the namespace that a file keeps; none where that can't be told."""
    import subprocess  # late: rare, and a hit has no use for it

    command = ["nsenter", f"--mount={namespace_file}", "cat", "/proc/self/mountinfo"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [_parsed(line) for line in os.fsdecode(done.stdout).splitlines()] if not done.returncode else []


def sees_every_process() -> bool:
    """Whether /proc lists every process of the machine: not so in a PID namespace of one's own."""
    try:
        # Linux: include/linux/proc_ns.h, PROC_PID_INIT_INO.
        return os.readlink("/proc/self/ns/pid") == f"pid:[{0xEFFFFFFC}]"
    except OSError:
        return False


def _parsed(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    mount_id, parent_id, device, root, mountpoint, options = left.split(" ", 6)[:6]
    fstype, source, super_options = right.split(" ", 2)
    return Mount(
        int(mount_id), int(parent_id), device, _decoded(root), _decoded(mountpoint),
        _decoded(fstype), _decoded(source), options, _decoded(super_options),
    )  # fmt: skip


def _decoded(field: str) -> str:
    if "\\" not in field:
        return field
    first, *rest = os.fsencode(field).split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest))


def _clone(tree: str) -> int:
    """Return a detached, read-only copy of the mount of directory tree."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    clone = int(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(tree), flags))
    if clone < 0:
        code = ctypes.get_errno()
        if code == errno.ENOSYS:
            raise NotImplementedError
        raise _mount_error("binding", tree, code)
    # Private: nothing mounted later where the cache lies may show up in the bind.
    attr = _MountAttr(_ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, _MS_PRIVATE, 0)
    flags = _AT_EMPTY_PATH | _AT_RECURSIVE
    if _libc.syscall(_MOUNT_SETATTR, clone, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr)):
        code = ctypes.get_errno()
        os.close(clone)
        if code == errno.ENOSYS:  # mount_setattr came with Linux 5.12, open_tree with 5.2
            raise NotImplementedError
        raise _mount_error("making read-only the bind of", tree, code)
    return clone


def _move(clone: int, location: str, flags: int) -> None:
    path = os.fsencode(location)
    if _libc.syscall(_MOVE_MOUNT, clone, b"", _AT_FDCWD, path, flags | _MOVE_FROM_EMPTY):
        code = ctypes.get_errno()
        if flags & _MOVE_BENEATH and code in (errno.EINVAL, errno.ENOSYS):
            raise BeneathUnsupportedError(f"{location}: can't mount beneath it; bind on top")
        raise _mount_error("mounting at", location, code)


def _bind_classic(tree: str, location: str) -> None:
    path = os.fsencode(location)
    if _libc.mount(os.fsencode(tree), path, None, _MS_BIND | _MS_REC, None):
        raise _mount_error("mounting at", location, ctypes.get_errno())
    fd = hold(location)
    try:
        kept = os.statvfs(tree).f_flag & _LOCKED_FLAGS
        flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | kept
        target = f"/proc/self/fd/{fd}".encode()
        if _libc.mount(None, target, None, _MS_PRIVATE, None) or _libc.mount(None, target, None, flags, None):
            code = ctypes.get_errno()
            detach(fd)
            raise _mount_error("making read-only the mount at", location, code)
    finally:
        os.close(fd)


def _fusermount(location: str) -> bool:
    """Let the setuid program take away a FUSE mount that its user made; whether it did."""
    import subprocess  # late: a hit has no use for it

    try:
        command = ["fusermount3", "-u", "-z", "--", location]
        return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _mount_error(action: str, what: str, code: int) -> MountError:
    hint = _HINTS.get(code, "`bdnfs doctor` says what this machine can do")
    return MountError(f"{action} {what}: {os.strerror(code)}; {hint}")


def _shown(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"descriptor {fd}"


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
