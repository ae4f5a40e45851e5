"""Disks that a test owns: filesystems in files, on loop devices, cut off, copied, filled and broken at will."""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

WAIT_S = 60.0
_MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}
# What the tools accept; sparse, so nothing of it is taken until it is written.
LEAST_MIB = {"ext4": 8, "xfs": 320, "btrfs": 160}


def tool(*words: object) -> str:
    """Run a tool of the system's; return what it printed."""
    done = subprocess.run(
        [str(word) for word in words], check=False, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 0, f"{words}: {done.stderr or done.stdout}"
    return done.stdout


class Disks:
    """Makes disks and takes all of them away in the end."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._after = ExitStack()
        self._count = 0

    def close(self) -> None:
        self._after.close()

    def image(self, kind: str, size_mib: int, *options: str) -> Path:
        """Make a file that holds an empty filesystem."""
        self._count += 1
        path = self.place / f"{kind}-{self._count}.img"
        with path.open("wb") as file:
            file.truncate(max(size_mib, LEAST_MIB[kind]) << 20)
        tool(*_MKFS[kind], *options, path)
        return path

    def mount(self, image: Path, kind: str, options: str = "") -> "Mounted":
        """Mount an image on a loop device of its own, and let only root in."""
        options = ",".join(filter(None, ["loop", "nouuid" if kind == "xfs" else "", options]))
        return self._mounted(lambda at: tool("mount", "-t", kind, "-o", options, image, at))

    def mount_failing(self, image: Path, kind: str) -> "Mounted":
        """Mount an image so that a read beyond its file's end (see `break_off`) is an error, not zeros."""
        device = tool("losetup", "--find", "--show", "--direct-io=on", image).strip()
        try:
            return self._mounted(lambda at: tool("mount", "-t", kind, device, at))
        finally:
            tool("losetup", "--detach", device)  # as soon as it is unmounted

    def tmpfs(self, size_mib: float, options: str = "") -> "Mounted":
        """Mount an empty tmpfs."""
        options = ",".join(filter(None, [f"size={int(size_mib * 1024)}k,mode=700", options]))
        return self._mounted(lambda at: tool("mount", "-t", "tmpfs", "-o", options, "tmpfs", at))

    def overlay(self, on: Path) -> "Mounted":
        """Mount an overlay whose layers lie in a directory, which no overlay must be itself."""
        layers = [on / name for name in ("lower", "upper", "work")]
        for layer in layers:
            layer.mkdir()
        options = "lowerdir={},upperdir={},workdir={}".format(*layers)
        return self._mounted(lambda at: tool("mount", "-t", "overlay", "-o", options, "overlay", at))

    def _mounted(self, mount: Callable[[Path], object]) -> "Mounted":
        self._count += 1
        at = self.place / f"disk-{self._count}"
        at.mkdir()
        # Another test's copy of the mount namespace may hold what was mounted of this just now.
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                mount(at)
                break
            except AssertionError as error:
                if "exists" not in str(error) or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)
        mounted = Mounted(at)
        self._after.callback(mounted.unmount)
        return mounted


class Mounted:
    """One mounted disk."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.stands = True

    def unmount(self) -> None:
        """Take it away, whoever still has a file open there."""
        if self.stands:
            self.stands = False
            tool("umount", "-l", self.at)

    def remount(self, options: str) -> None:
        tool("mount", "-o", f"remount,{options}", self.at)


def break_off(image: Path, file: Path) -> None:
    """Cut the file below a mounted disk off within `file`: what lies behind can't be read any more."""
    tool("sync", "-f", file)
    lines = tool("filefrag", "-v", "-e", file).splitlines()
    first = next(
        int(line.split(":")[2].split("..")[0]) for line in lines if line.split(":")[0].strip() == "0"
    )
    os.truncate(image, (first + 1) * 4096)
    fd = os.open(file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def fill_up(place: Path, leave_bytes: int = 0, name: str = "filler") -> Path:
    """Write a file until nothing more fits, then give leave_bytes back."""
    path = place / name
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 16, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
        file.truncate(max(0, file.tell() - leave_bytes))
    return path
