"""What every upstream store answers, whatever it speaks."""

from collections.abc import Iterator
from typing import Protocol

from bdnfs.manifest.model import FileEntry


class Origin(Protocol):
    """One source's upstream store. Blocking: called from worker threads, several at once.

    Every call ends: a stalled connection raises UnavailableError. All methods raise
    CredentialsError, NotFoundError, UnavailableError (worth a retry) or UpstreamError (not);
    `read` and `stream` raise ChangedError when upstream's bytes are no longer the entry's.
    No error's text holds a token, a key or a signed URL's query.
    """

    @property
    def name(self) -> str:
        """The store and what in it: goes into blob ids, so it tells apart endpoints and buckets."""
        ...

    def resolve(self, revision: str | None) -> str | None:
        """Return the immutable revision that revision (a branch, a tag, None: the default) names now.

        One small request. None where the store has no revisions: then the listing itself is
        the identity.
        """
        ...

    def list(self, revision: str | None) -> Iterator[FileEntry]:
        """Yield every file at the immutable revision, in any order; names are unchecked, sizes are not."""
        ...

    def read(self, revision: str | None, entry: FileEntry, start: int, into: memoryview) -> None:
        """Fill `into` with the bytes [start, start + len(into)) of entry."""
        ...

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        """Yield the whole of entry from its first byte, in pieces that are valid until the next."""
        ...

    def close(self) -> None:
        """Let connections go. A read under way may fail with UnavailableError."""
        ...
