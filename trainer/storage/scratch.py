"""Scratch: a disk of the job's own, with a hard cap, cleared however the job ends."""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.errors import ConfigError
from trainer.storage.errors import PlaceError, SpaceError
from trainer.storage.loop import is_backed_by, loop_device
from trainer.storage.mounting import mount, mounted_below, unmount

SCRATCH_BYTES_MIN = 16 << 20
_TOOL_TIMEOUT_S = 120.0
# No journal: nobody reads a scratch after a power cut. Inode tables stay unwritten until they are used.
_MKFS = (
    *("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-O", "^has_journal,^resize_inode"),
    *("-E", "lazy_itable_init=1,nodiscard"),
)
_EXT4_OPTIONS = "noinit_itable"
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

Kind = Literal["image", "tmpfs", "directory"]


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A job's scratch, made but mounted nowhere yet.

    kind: "image"     an ext4 filesystem in a file, its blocks reserved; mounted on a loop device
          "tmpfs"     memory and swap; where there is no loop device, or no right to it
          "directory" a plain directory, without a cap; where nothing may be mounted
    said: one line for the job's log where it is not a reserved image: what it is instead, and why; else ""
    """

    kind: Kind
    cap_bytes: int
    job_dir: Path
    said: str = ""

    def mount(self, location: Path) -> Path:
        """Mount it at location, a directory, in the caller's mount namespace; return where it is.

        Call it inside the job's own namespace (as root there): the mount then ends with the namespace's last
        process and nobody else ever holds a copy. Root of it: mode 1777, nosuid, nodev.
        Kind "directory": nothing is mounted; returns the directory in job_dir to bind (or to use as it is).
        Raises PlaceError.
        """
        if self.kind == "directory":
            return _directory(self.job_dir)
        if self.kind == "tmpfs":
            mount("scratch", location, "tmpfs", f"size={self.cap_bytes},mode=1777")
            return location
        with loop_device(_image(self.job_dir)) as device:
            mount(device, location, "ext4", _EXT4_OPTIONS)
        location.chmod(0o1777)
        with contextlib.suppress(OSError):
            (location / "lost+found").rmdir()
        return location


def make_scratch(job_dir: Path, cap_bytes: int) -> Scratch:
    """Make a job's scratch, replacing what a crash may have left; for DEPLOYING, outside the namespace.

    An image's cap_bytes are reserved on the disk at once, so that neither the job nor its neighbours meet a full
    disk later; ext4's own tables take about 2 % of them. Whether it can be mounted is tried here, in a namespace
    that ends at once.
    Raises SpaceError (with the numbers) where the disk has no room for it; ConfigError for a cap under 16 MiB.
    """
    if cap_bytes < SCRATCH_BYTES_MIN:
        raise ConfigError(
            f"a scratch of {cap_bytes:,} bytes: an empty filesystem takes more; give {SCRATCH_BYTES_MIN:,} or more"
        )
    clear_scratch(job_dir)
    why = _obstacle_to_loops()
    if not why:
        reserved = _make_image(_image(job_dir), cap_bytes)
        why = _tried(["mount", "-o", "loop,ro", str(_image(job_dir))], job_dir)
        if not why:
            said = (
                ""
                if reserved
                else "scratch: its blocks can't be reserved on this filesystem; the disk may fill"
            )
            return Scratch(kind="image", cap_bytes=cap_bytes, job_dir=job_dir, said=said)
        clear_scratch(job_dir)
    in_memory = min(cap_bytes, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    why_no_tmpfs = _tried(["mount", "-t", "tmpfs", "scratch"], job_dir)
    if not why_no_tmpfs:
        said = f"scratch is in memory, at most {in_memory:,} bytes of it (a tmpfs), as an image can't be used: {why}"
        return Scratch(kind="tmpfs", cap_bytes=in_memory, job_dir=job_dir, said=said)
    _directory(job_dir).mkdir(mode=0o700)
    said = f"scratch is a plain directory and has no cap, as nothing can be mounted: {why_no_tmpfs}"
    return Scratch(kind="directory", cap_bytes=cap_bytes, job_dir=job_dir, said=said)


def clear_scratch(job_dir: Path, wait_s: float = 5.0) -> None:
    """Take away a job's scratch: unmount what this namespace still has of it, delete it.

    For the end of the job and for whoever finds a job that crashed; again, or with nothing there, is no error.
    The job's processes have ended; the kernel lets go of the image a moment later, and its blocks are free then.
    That is waited for, up to wait_s: a process that still lives in a namespace with the mount keeps them until it
    ends. Raises PlaceError where something of it can't be taken away.
    """
    for at in reversed(mounted_below(_directory(job_dir))):
        unmount(at)
    image = Path(os.path.realpath(_image(job_dir)))
    if image.exists():
        image.unlink(missing_ok=True)
        deadline_s = time.monotonic() + wait_s
        while is_backed_by(image) and time.monotonic() < deadline_s:
            time.sleep(0.01)
    remove_tree(_directory(job_dir))


def remove_tree(directory: Path) -> None:
    """Remove a directory and all in it, whatever its modes; raise PlaceError where that fails.

    Symbolic links are removed, never followed.
    """
    if not os.path.lexists(directory):
        return
    try:
        if not stat.S_ISDIR(directory.lstat().st_mode):
            directory.unlink()
            return
        if os.geteuid() != 0:  # a directory its owner may not write to
            for place, _, _ in os.walk(directory):
                os.chmod(place, 0o700)
        shutil.rmtree(directory)
    except OSError as error:
        raise PlaceError(
            f"removing {directory}: {error.filename}: {error.strerror}; remove it by hand"
        ) from None


def _image(job_dir: Path) -> Path:
    return job_dir / "scratch.img"


def _directory(job_dir: Path) -> Path:
    return job_dir / "scratch"


def _obstacle_to_loops() -> str:
    """Return what keeps an image from being mounted, as far as that shows before there is one; "" for nothing."""
    if os.geteuid() != 0:
        return "that takes root"
    if shutil.which(_MKFS[0]) is None:
        return f"{_MKFS[0]} is missing (install e2fsprogs)"
    if not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        return "there is no /dev/loop-control here"
    return ""


def _make_image(image: Path, cap_bytes: int) -> bool:
    """Write an empty filesystem of cap_bytes; return whether its blocks are reserved."""
    try:
        with image.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            reserved = _reserve(file.fileno(), cap_bytes)
            file.truncate(cap_bytes)
        done = subprocess.run(
            [*_MKFS, str(image)], check=False, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S
        )
    except OSError as error:
        image.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise PlaceError(f"making the scratch {image}: {error.strerror}") from None
        free = shutil.disk_usage(image.parent).free
        raise SpaceError(
            f"reserving a scratch of {cap_bytes:,} bytes in {image.parent}: {os.strerror(error.errno).lower()}, "
            f"{free:,} bytes are free; free some, or lower `scratch` in the trainer's config"
        ) from None
    if done.returncode != 0:
        image.unlink(missing_ok=True)
        raise PlaceError(f"making the scratch {image}: {' '.join((done.stderr or done.stdout).split())}")
    return reserved


def _reserve(fd: int, size_bytes: int) -> bool:
    """Take blocks for a file; return False where the filesystem can't; raise OSError where there are too few."""
    if not _libc.fallocate(fd, 0, 0, size_bytes):
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code))


def _tried(words: list[str], job_dir: Path) -> str:
    """Mount something in a namespace that ends at once; return what went wrong, "" for nothing."""
    place = job_dir / "scratch.try"
    place.mkdir(exist_ok=True)
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    try:
        done = subprocess.run(
            ["unshare", *user, "--mount", "--", *words, str(place)],
            check=False,
            capture_output=True,
            text=True,
            timeout=_TOOL_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        place.rmdir()
    return " ".join(done.stderr.split()) or f"mount ended with {done.returncode}" if done.returncode else ""
