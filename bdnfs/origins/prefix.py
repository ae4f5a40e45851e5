"""What a prefix of a bucket names: the one object of that very key, or what lies below it. Blocking."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from bdnfs.core.errors import CredentialsError, NotFoundError, UnavailableError, UpstreamError
from bdnfs.manifest.model import FileEntry

T = TypeVar("T")


class Prefix(Generic[T]):
    """One prefix; which of the two it is, is found out once. T is what the store says of an object.

    look:    returns what is at a key, None where no object is; told what is being done, for its errors
    is_file: says whether that is a file: an object without content may only stand for the directory
    """

    def __init__(
        self, prefix: str, look: Callable[[str, str], T | None], is_file: Callable[[T], bool]
    ) -> None:
        self._prefix = prefix
        self._look, self._is_file = look, is_file
        self._is_single: bool | None = None

    def entries(
        self,
        doing: str,
        below: Iterable[FileEntry | None],
        entry: Callable[[str, T], FileEntry],
        empty: str,
    ) -> Iterator[FileEntry]:
        """Yield the one object, or what is below; None among that is something, but no file.

        entry: makes an entry of a path and what the store says; empty: what to check where the bucket holds nothing
        Raises NotFoundError where there is neither, or what refused the look at the prefix itself.
        """
        single, refusal = None, None
        try:
            single = self._single(doing)
        except UnavailableError:
            raise
        except (CredentialsError, UpstreamError) as error:
            # Who may list but not look at this one key is told so, by S3 without a reason; listing decides.
            refusal = error
        name = self._prefix.rpartition("/")[2]
        if single is not None and self._is_single:
            yield entry(name, single)
            return
        found = False
        for each in below:
            found = True
            if each is not None:
                yield each
        if found:
            return
        if refusal is not None:
            raise refusal
        if single is None:
            raise NotFoundError(
                f"{doing}: there is no such object and nothing below {self._prefix}/; check bucket and prefix"
                if self._prefix
                else f"{doing}: the bucket is empty; {empty}"
            )
        yield entry(name, single)

    def key(self, doing: str, entry: FileEntry) -> str:
        """Return the entry's key: the prefix itself where that is an object, as in `entries`."""
        if self._prefix.rpartition("/")[2] == entry.path and self._names_object(doing):
            return self._prefix
        return f"{self._prefix}/{entry.path}" if self._prefix else entry.path

    def _single(self, doing: str) -> T | None:
        single = self._look(doing, self._prefix) if self._prefix else None
        self._is_single = single is not None and self._is_file(single)
        return single

    def _names_object(self, doing: str) -> bool:
        """Return whether the prefix itself is the object; a refusal is no, and not for good."""
        if self._is_single is None:
            try:
                self._single(doing)
            except UnavailableError:
                raise
            except (CredentialsError, UpstreamError):
                return False
        return bool(self._is_single)
