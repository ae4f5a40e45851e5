"""Where a mirror's objects lie: the one small interface to a bucket or a directory."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

# What `put` may find there: nothing, anything, or exactly the version that `get` returned.
Expected = Literal["absent", "any"] | str


class Listed(NamedTuple):
    """One object of a listing. size: bytes; modified_s: seconds since the epoch, by the store's clock."""

    key: str
    size: int
    modified_s: float


class Held(NamedTuple):
    """A small object, read whole. version: what changes with each write of it."""

    data: bytes
    content_type: str
    version: str


class Store(Protocol):
    """A bucket below a prefix, or a directory. Blocking: called from worker threads, several at once.

    Keys are relative, `/`-separated, of letters, digits and `._-` only: they are ours, never upstream's.
    Every call ends: what stalls raises UnavailableError. All raise CredentialsError, UnavailableError
    (worth a retry), UpstreamError (not) or SpaceError. No error's text holds a key's secret or a signed URL.
    A write shows whole or not at all, to whoever reads.
    """

    @property
    def name(self) -> str:
        """The store as a user would name it (`s3://bucket/prefix at https://…`)."""
        ...

    def get(self, key: str, bytes_max: int) -> Held:
        """Return a small object; NotFoundError if there is none, IntegrityError if it is longer."""
        ...

    def fill(self, key: str, into: memoryview) -> str:
        """Fill `into` with all of an object; return its content type.

        Raises NotFoundError if there is none, IntegrityError if it has another length.
        """
        ...

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes; None if there is none."""
        ...

    def put(self, key: str, data: bytes | memoryview, content_type: str, expected: Expected) -> bool:
        """Write an object; False, and nothing changed, where something else than expected is there.

        A store that can't write conditionally looks first and then writes; then two at once both write.
        `data` is not used after the call.
        """
        ...

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield every object whose key starts with prefix (empty, or ending in `/`), in any order."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are no error."""
        ...

    def flush(self) -> None:
        """Return once everything this process has put would survive a power cut."""
        ...

    def close(self) -> None: ...
