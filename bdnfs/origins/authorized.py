"""An origin read with credentials that may be renewed while it is open."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from bdnfs.core.errors import CredentialsError, UnavailableError
from bdnfs.manifest.model import FileEntry
from bdnfs.origins.base import Origin
from bdnfs.origins.credentials import Credential

T = TypeVar("T")


class Authorized:
    """An origin that is asked once more where it refused credentials which are others by now.

    What it refuses for good is said with the source and with what it was shown.

    text: the source as declared
    """

    def __init__(self, origin: Origin, credential: Credential[Any], text: str) -> None:
        self._origin = origin
        self._credential = credential
        self._text = text

    @property
    def name(self) -> str:
        return self._origin.name

    def resolve(self, revision: str | None) -> str | None:
        return self._twice(lambda: self._origin.resolve(revision))

    def list(self, revision: str | None) -> Iterator[FileEntry]:
        return self._each(lambda: self._origin.list(revision))

    def read(self, revision: str | None, entry: FileEntry, start: int, into: memoryview) -> None:
        self._twice(lambda: self._origin.read(revision, entry, start, into))

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        return self._each(lambda: self._origin.stream(revision, entry))

    def close(self) -> None:
        self._origin.close()

    def _twice(self, act: Callable[[], T]) -> T:
        try:
            used = self._credential.current()
            try:
                return act()
            except CredentialsError:
                if not self._credential.refused(used):
                    raise
            return act()
        except CredentialsError as error:
            raise self._explained(error) from None

    def _each(self, begin: Callable[[], Iterator[T]]) -> Iterator[T]:
        begun = False
        try:
            used = self._credential.current()
            try:
                for item in begin():
                    begun = True
                    yield item
                return
            except CredentialsError:
                if not self._credential.refused(used):
                    raise
            if begun:
                raise UnavailableError(
                    f"{self._text}: {self._credential.name} was renewed in the middle of an answer; try again"
                )
            yield from begin()
        except CredentialsError as error:
            raise self._explained(error) from None

    def _explained(self, error: CredentialsError) -> CredentialsError:
        text = str(error)
        where = "" if self._text in text else f"{self._text}: "
        used = "" if self._credential.name in text else f" ({self._credential.name} was used)"
        return CredentialsError(f"{where}{text}{used}")
