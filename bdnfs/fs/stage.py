"""Staging: a finished tree as an ordinary directory, where mounting is barred."""

import errno
import fcntl
import os
import shutil
import uuid

from bdnfs.core.errors import MountError, SpaceError
from bdnfs.core.units import TREE_MTIME_S

# Linux: include/uapi/linux/fs.h.
FICLONE = 0x40049409
# What filesystems say that can't share blocks between these two files.
_NO_REFLINK = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}


def stage(tree: str, destination: str) -> str:
    """Put what is in directory tree at destination, all at once; return "reflink" or "symlink".

    Reflinks are copies of their own that share the tree's blocks. Where the filesystem has none,
    each file is a symbolic link into the tree, which must then stay pinned, and through which root
    could write. destination must not exist, or be an empty directory. Raise MountError where it
    can't be made, SpaceError where the disk is full; nothing is left behind then.
    """
    destination = os.path.abspath(destination)
    tree = os.path.realpath(tree)
    _check(destination)
    parent, name = os.path.split(destination)
    made = _make_parents(parent)
    beside = os.path.join(parent, f".{name}.{uuid.uuid4().hex[:8]}")
    try:
        how = "reflink"
        try:
            _fill(tree, beside, reflink=True)
        except _NoReflinkError:
            shutil.rmtree(beside)
            how = "symlink"
            _fill(tree, beside, reflink=False)
        os.rename(beside, destination)
        return how
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        for directory in reversed(made):
            _remove_if_empty(directory)
        if not isinstance(error, OSError):
            raise
        raise _explained(error, tree, destination) from None


class _NoReflinkError(Exception):
    pass


def _check(destination: str) -> None:
    if os.path.islink(destination) or (os.path.lexists(destination) and not os.path.isdir(destination)):
        raise MountError(f"staging at {destination}: it is no directory; name another place, or remove it")
    try:
        taken = os.path.lexists(destination) and bool(os.listdir(destination))
    except OSError as error:
        raise MountError(f"staging at {destination}: looking into it: {error.strerror}") from None
    if taken:
        raise MountError(f"staging at {destination}: it is not empty; name another place, or empty it")


def _make_parents(directory: str) -> list[str]:
    made: list[str] = []
    missing = directory
    while not os.path.lexists(missing):
        made.insert(0, missing)
        missing = os.path.dirname(missing)
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        for each in reversed(made):
            _remove_if_empty(each)
        raise MountError(
            f"staging below {directory}: making the directory: {error.strerror}; name another place"
        ) from None
    return made


def _fill(tree: str, target: str, *, reflink: bool) -> None:
    os.mkdir(target)
    with os.scandir(tree) as entries:
        for entry in entries:
            copy = os.path.join(target, entry.name)
            if entry.is_dir(follow_symlinks=False):
                _fill(entry.path, copy, reflink=reflink)
            elif reflink:
                _reflink(entry.path, copy)
            else:
                os.symlink(entry.path, copy)
    os.utime(target, (TREE_MTIME_S, TREE_MTIME_S))


def _reflink(source: str, target: str) -> None:
    with open(source, "rb", buffering=0) as original:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            fcntl.ioctl(fd, FICLONE, original.fileno())
            os.fchmod(fd, 0o444)
            os.utime(fd, (TREE_MTIME_S, TREE_MTIME_S))
        except OSError as error:
            if error.errno in _NO_REFLINK:
                raise _NoReflinkError from None
            raise
        finally:
            os.close(fd)


def _remove_if_empty(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError:
        return


def _explained(error: OSError, tree: str, destination: str) -> MountError | SpaceError:
    said = f"staging {tree} at {destination}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SpaceError(f"{said}; free some space there, or stage on the cache's own filesystem")
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
        return MountError(f"{said}; somebody else made something there meanwhile, name another place")
    return MountError(f"{said}; nothing was left there, name another place or mend this one")
