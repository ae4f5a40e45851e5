"""What an error of the filesystem under a directory store means."""

import contextlib
import errno
from collections.abc import Iterator

from bdnfs.core.errors import (
    BdnfsError,
    CredentialsError,
    NotFoundError,
    SpaceError,
    UnavailableError,
    UpstreamError,
)


@contextlib.contextmanager
def told(doing: str) -> Iterator[None]:
    """Raise what an OSError of the block means, said of `doing` ("writing key to /mirror")."""
    try:
        yield
    except OSError as error:
        raise _meaning(doing, error) from None


def _meaning(doing: str, error: OSError) -> BdnfsError:
    said = f"{doing}: {error.strerror}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return SpaceError(
                f"{said}; free some space, or run: bdnfs mirror gc. What is mirrored stays good"
            )
        case errno.ENOENT:
            return NotFoundError(
                f"{doing}: it is not there; check the directory's name, and that it is mounted"
            )
        case errno.EACCES:
            return CredentialsError(f"{said}; ask its owner for access, or name another directory")
        case errno.EROFS:
            return UpstreamError(f"{said}; mount it writable, or mirror from a machine that may write")
        case errno.ELOOP | errno.ENOTDIR | errno.EISDIR:
            return UpstreamError(
                f"{said}: a file or a symlink, which is not followed, is in the way; move it away, then try again"
            )
        case errno.EPERM | errno.EOPNOTSUPP | errno.EMLINK:
            return UpstreamError(
                f"{said}; the directory needs a filesystem with hard links, and files that aren't immutable"
            )
        case _:
            return UnavailableError(f"{said}; try again, or check the disk")
