"""Scratch: a disk of the job's own, with a hard cap, cleared however the job ends."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A job's scratch, made but mounted nowhere yet.

    kind: "image"     an ext4 filesystem in a file, its blocks reserved; mounted on a loop device
          "tmpfs"     memory and swap; where there is no loop device, or no right to it
          "directory" a plain directory, without a cap; where nothing may be mounted
    said: one line for the job's log where it is not an image: what it is instead, and why; else ""
    """

    kind: Literal["image", "tmpfs", "directory"]
    cap_bytes: int
    job_dir: Path
    said: str

    def mount(self, location: Path) -> Path:
        """Mount it at location, a directory, in the caller's mount namespace; return where it is.

        Call it inside the job's own namespace (as root there): the mount then ends with the namespace's last
        process and nobody else ever holds a copy. Root of it: mode 1777, nosuid, nodev.
        Kind "directory": nothing is mounted; returns the directory in job_dir to bind (or to use as it is).
        Raises MountError.
        """
        raise NotImplementedError


def make_scratch(job_dir: Path, cap_bytes: int) -> Scratch:
    """Make a job's scratch, replacing what a crash may have left; for DEPLOYING, outside the namespace.

    An image's cap_bytes are reserved on the disk at once, so that neither the job nor its neighbours meet a full
    disk later. Whether it can be mounted is tried here, in a namespace of its own.
    Raises SpaceError (with the numbers) where the disk has no room for it; SpecError for a cap under 16 MiB.
    """
    raise NotImplementedError


def clear_scratch(job_dir: Path) -> None:
    """Take away a job's scratch: unmount what this namespace still has of it, free the loop device, delete it.

    For the end of the job and for whoever finds a job that crashed; again, or with nothing there, is no error.
    The job's processes have ended; one that still lives in a namespace with the mount keeps the blocks until
    it ends, not the name. Raises MountError where something of it can't be taken away.
    """
    raise NotImplementedError
