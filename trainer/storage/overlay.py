"""`writable` on request: a view of a mounted source that can be changed, the changes in the job's scratch."""

from pathlib import Path


def mount_overlay(location: Path, scratch: Path, name: str) -> None:
    """Make what stands at location writable: mount an overlay of it on top, its upper layer in scratch.

    location: a mounted source, in the caller's mount namespace, which is the job's own
    scratch:  where the job's scratch is mounted by now
    name:     unique in the job, for the layer's directory: scratch/.writable/<name>/
    The source itself is never changed; what is written counts against the scratch's cap (ENOSPC).
    Raises MountError where the kernel can't.
    """
    raise NotImplementedError
