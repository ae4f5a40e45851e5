"""What can go wrong: one class for each decision a caller makes.

Every class carries the exit code of the command line (documented in README.md, stable), and
`ERRNO` says once what a reader of a mount gets for it.
"""

import errno


class BdnfsError(Exception):
    """Anything bdnfs says to its user: what was being done, to what, what was found, what next."""

    exit_code = 1


class SpecError(BdnfsError):
    """The spec, the config or the command line is wrong; nothing was touched."""

    exit_code = 2


class CredentialsError(BdnfsError):
    """Upstream wants credentials, or refuses the ones it got (401, 403, a gated repository)."""

    exit_code = 3


class SpaceError(BdnfsError):
    """What is asked for does not fit the cache's capacity or the disk."""

    exit_code = 4


class UpstreamError(BdnfsError):
    """Upstream gave no usable answer; trying the same again is of no use."""

    exit_code = 5


class NotFoundError(UpstreamError):
    """Upstream answered that this repository, revision, object or file does not exist."""


class UnavailableError(UpstreamError):
    """Upstream failed in a way that may pass: worth another try, or the last snapshot seen.

    retry_after_s: what upstream asked to wait, in seconds, or None.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class IntegrityError(BdnfsError):
    """Bytes are not what their digest, their size or their pinned identity says."""

    exit_code = 6


class ChangedError(IntegrityError):
    """Upstream changed under a pinned snapshot."""


class DeadlineError(BdnfsError):
    """A wait reached its deadline."""

    exit_code = 7


class MountError(BdnfsError):
    """A mountpoint can't be used, or the kernel or the rights for a mount are missing."""

    exit_code = 8


class CacheError(BdnfsError):
    """The node cache can't be used: another user's, a newer format, unreadable, locked."""

    exit_code = 9


# What json and msgspec raise for bytes that are not what they should be: their own errors, halves of
# characters and numbers of thousands of digits are ValueErrors; nesting thousands deep is not.
UNREADABLE = (ValueError, RecursionError)

# A reader can retry EIO; ENOSPC and EACCES tell the two causes an operator mends by hand.
ERRNO: dict[type[BdnfsError], int] = {
    SpaceError: errno.ENOSPC,
    CredentialsError: errno.EACCES,
}


def errno_of(error: BdnfsError) -> int:
    """Return the errno a reader of a mount gets for error; EIO where the table names none."""
    return next((code for kind, code in ERRNO.items() if isinstance(error, kind)), errno.EIO)
