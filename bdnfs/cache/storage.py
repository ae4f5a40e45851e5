"""What an error of the cache's own filesystem means: no space, or no good."""

import errno
from pathlib import Path

from bdnfs.core.errors import CacheError, SpaceError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def storage_error(path: Path, done: str, error: OSError) -> CacheError | SpaceError:
    """Return what to raise where path couldn't be `done` ("written", "made", …)."""
    if error.errno in _FULL:
        return SpaceError(
            f"{path}: can't be {done}, the disk or its inodes are used up; free some, or run `bdnfs cache evict`, "
            "then try again: what has been fetched is kept"
        )
    if error.errno == errno.EFBIG:
        return SpaceError(f"{path}: the cache's filesystem can't hold a file of this size ({error.strerror})")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return CacheError(f"{path}: can't be {done}, too many files are open; raise `ulimit -n`")
    if error.errno == errno.ELOOP:
        return CacheError(f"{path}: is a symlink, which is not followed; move it away, then try again")
    return CacheError(f"{path}: can't be {done} ({error.strerror}); check the disk, then try again")
