"""What this machine can do, tried out: the findings of `bdnfs doctor`.

What changes namespaces or mounts is tried in a process of its own and is gone with it.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bdnfs.core.errors import MountError
from bdnfs.core.units import GIB, format_size
from bdnfs.fs.mounts import BeneathUnsupportedError, bind, bind_beneath, mount_table, resolve, unshare

OPEN_FILES_MIN = 4096
FREE_BYTES_MIN = 10 * GIB
FSYNC_SLOW_S = 0.05
_TRY_S = 20.0

_UNFIT = {
    "tmpfs": "lies in memory and is empty after a restart",
    "ramfs": "lies in memory and is empty after a restart",
    "overlay": "is a container's own layer: slow to fill, and gone with the container",
    "aufs": "is a container's own layer: slow to fill, and gone with the container",
    "nfs": "is on the network: every hit would cross it",
    "nfs4": "is on the network: every hit would cross it",
    "cifs": "is on the network, and has no hard links that last",
    "9p": "is shared with another machine: slow, and its locks are not reliable",
    "virtiofs": "is shared with another machine: its locks may not be reliable",
    "lustre": "is on the network: every hit would cross it",
    "ceph": "is on the network: every hit would cross it",
    "vfat": "has no hard links and no rights",
    "exfat": "has no hard links and no rights",
}


class Finding(NamedTuple):
    """One thing tried: whether it works, what was found, and what to do where it doesn't."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def findings(cache_directory: str) -> list[Finding]:
    """Try everything that bdnfs would use; takes a second or two, leaves nothing behind, never raises."""
    probes: list[tuple[str, Callable[[], Finding]]] = [
        ("kernel", _kernel),
        ("fuse device", _fuse_device),
        ("fusermount3", _fusermount),
        ("mounting", lambda: _mounting("mounting", user=False)),
        ("user namespaces", lambda: _mounting("user namespaces", user=True)),
        ("hand-off", _hand_off),
        ("read-ahead", _read_ahead),
        ("open files", _open_files),
    ]
    found = [_guarded(name, probe) for name, probe in probes]
    return found + _cache_findings(cache_directory)


def _guarded(name: str, probe: Callable[[], Finding]) -> Finding:
    try:
        return probe()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Finding(
            name, False, f"could not be tried: {error}", "run `bdnfs doctor` as the user who mounts"
        )


def _kernel() -> Finding:
    release = os.uname().release
    major, minor = (int("".join(filter(str.isdigit, part)) or "0") for part in release.split(".")[:2])
    ok = (major, minor) >= (5, 12)
    return Finding(
        "kernel", ok, f"Linux {release}", "" if ok else "use Linux 5.12 or newer, best 6.5 or newer"
    )


def _fuse_device() -> Finding:
    name = "fuse device"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Finding(
            name, False, "/dev/fuse is not there",
            "`modprobe fuse`; in a container pass the device in (`--device /dev/fuse`)",
        )  # fmt: skip
    except OSError as error:
        return Finding(name, False, f"/dev/fuse: {error.strerror}", "run as root, or `chmod 666 /dev/fuse`")
    return Finding(name, True, "/dev/fuse can be opened")


def _fusermount() -> Finding:
    path = shutil.which("fusermount3")
    if path is None:
        needed = os.geteuid() != 0
        said = "not installed" if needed else "not installed; root does without"
        return Finding("fusermount3", not needed, said, "install the package fuse3" if needed else "")
    setuid = bool(os.stat(path).st_mode & 0o4000)
    ok = setuid or os.geteuid() == 0
    return Finding(
        "fusermount3", ok, f"{path}{', setuid root' if setuid else ', not setuid'}",
        "" if ok else f"`chmod u+s {path}` as root",
    )  # fmt: skip


def _mounting(name: str, *, user: bool) -> Finding:
    said = _try("user" if user else "mount")
    if not said:
        detail = "a bind mount in a user namespace works" if user else "bind mounts work"
        return Finding(name, True, detail)
    remedy = (
        "set user.max_user_namespaces above 0 and kernel.unprivileged_userns_clone (or "
        "kernel.apparmor_restrict_unprivileged_userns on Ubuntu) so that users may make namespaces"
        if user
        else "run as root or with CAP_SYS_ADMIN; without it use `bdnfs run` or `bdnfs stage`"
    )
    return Finding(name, False, said, remedy)


def _hand_off() -> Finding:
    said = _try("beneath" if os.geteuid() == 0 else "user-beneath")
    if not said:
        return Finding("hand-off", True, "the native tree can be mounted beneath the FUSE mount")
    return Finding(
        "hand-off", False, said,
        "Linux 6.5 or newer mounts beneath; on this one the daemon stays until `bdnfs unmount`",
    )  # fmt: skip


def _read_ahead() -> Finding:
    settings = [str(path) for path in Path("/sys/class/bdi").glob("*/read_ahead_kb")]
    ok = bool(settings) and os.access(settings[0], os.W_OK, effective_ids=True)
    return Finding(
        "read-ahead", ok, "can be raised" if ok else "/sys/class/bdi can't be written",
        "" if ok else "run as root with a writable /sys; until handed off, reads are a third as fast",
    )  # fmt: skip


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = soft >= OPEN_FILES_MIN or hard >= OPEN_FILES_MIN or hard == resource.RLIM_INFINITY
    return Finding(
        "open files", ok, f"{soft} at once, {hard} at most",
        "" if ok else f"raise the limit to {OPEN_FILES_MIN} (`ulimit -n`, LimitNOFILE=)",
    )  # fmt: skip


def _cache_findings(cache_directory: str) -> list[Finding]:
    place = Path(resolve(cache_directory))
    while not place.is_dir():
        place = place.parent
    found = [
        _guarded("cache filesystem", lambda: _filesystem(place)),
        _guarded("cache space", lambda: _space(place)),
    ]
    try:
        with tempfile.TemporaryDirectory(prefix=".bdnfs-doctor-", dir=place) as directory:
            scratch = Path(directory)
            (scratch / "a").write_bytes(b"x" * 4096)
            found.append(_guarded("hard links", lambda: _hard_links(scratch)))
            found.append(_guarded("reflinks", lambda: _reflinks(scratch)))
            found.append(_guarded("direct reads", lambda: _direct(scratch)))
            found.append(_guarded("fsync", lambda: _fsync(scratch)))
    except OSError as error:
        said = f"{place}: {error.strerror}"
        found.append(Finding("cache directory", False, said, "name one you may write to (cache.directory)"))
    return found


def _filesystem(place: Path) -> Finding:
    device = os.stat(place).st_dev
    device_name = f"{os.major(device)}:{os.minor(device)}"
    held = [
        mount
        for mount in mount_table()
        if place == Path(mount.mountpoint) or Path(mount.mountpoint) in place.parents
    ]
    # By device where it tells (btrfs shows another one per subvolume), else the deepest on the way.
    fitting = [mount for mount in held if mount.device == device_name] or held
    mount = max(fitting, key=lambda mount: len(mount.mountpoint))
    unfit = _UNFIT.get(mount.fstype) or ("is a FUSE filesystem" if mount.fstype.startswith("fuse") else "")
    detail = f"{mount.fstype} ({mount.source}) at {mount.mountpoint}" + (f" {unfit}" if unfit else "")
    remedy = "put cache.directory on a local disk (ext4, xfs, btrfs)" if unfit else ""
    return Finding("cache filesystem", not unfit, detail, remedy)


def _space(place: Path) -> Finding:
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    detail = f"{format_size(free)} free of {format_size(status.f_blocks * status.f_frsize)}"
    ok = free >= FREE_BYTES_MIN
    return Finding(
        "cache space", ok, detail, "" if ok else "free some, or put cache.directory on a larger disk"
    )


def _hard_links(scratch: Path) -> Finding:
    try:
        os.link(scratch / "a", scratch / "link")
        same = (scratch / "a").stat().st_ino == (scratch / "link").stat().st_ino
    except OSError as error:
        return Finding(
            "hard links", False, error.strerror or "", "trees will be copies; use ext4, xfs or btrfs"
        )
    return Finding(
        "hard links", same, "work" if same else "are copies", "" if same else "use ext4, xfs or btrfs"
    )


def _reflinks(scratch: Path) -> Finding:
    import fcntl

    from bdnfs.fs.stage import FICLONE

    try:
        with (scratch / "a").open("rb") as source, (scratch / "clone").open("wb") as target:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
    except OSError:
        return Finding("reflinks", True, "not on this filesystem; `bdnfs stage` makes symbolic links there")
    return Finding("reflinks", True, "work")


def _direct(scratch: Path) -> Finding:
    try:
        os.close(os.open(scratch / "a", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return Finding("direct reads", True, "not on this filesystem; nothing needs them")
    return Finding("direct reads", True, "work")


def _fsync(scratch: Path) -> Finding:
    taken_s = []
    for number in range(10):
        with (scratch / f"sync-{number}").open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            taken_s.append(time.perf_counter() - start)
    median_s = statistics.median(taken_s)
    ok = median_s < FSYNC_SLOW_S
    return Finding(
        "fsync", ok, f"{median_s * 1000:.2g} ms", "" if ok else "fills will be slow; use a faster disk"
    )  # fmt: skip


def _try(what: str) -> str:
    """Run one of `_tried` in a process of its own; return "" where it works, else what was found."""
    with tempfile.TemporaryDirectory(prefix="bdnfs-doctor-") as directory:
        os.chmod(directory, 0o755)
        command = [sys.executable, "-m", "bdnfs.fs.machine", what, directory]
        package = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=_TRY_S)
    if done.returncode == 0:
        return ""
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[-1] if lines else f"ended with {done.returncode}"


def _tried(what: str, directory: str) -> None:
    unshare(user=what.startswith("user"))
    tree, location = Path(directory, "tree"), Path(directory, "location")
    tree.mkdir()
    location.mkdir()
    bind(str(tree), str(location))
    if what.endswith("beneath"):
        bind_beneath(str(tree), str(location))


if __name__ == "__main__":
    try:
        _tried(sys.argv[1], sys.argv[2])
    except BeneathUnsupportedError:
        sys.exit(f"Linux {os.uname().release} can't mount beneath a mount")
    except MountError as found:
        sys.exit(str(found))
