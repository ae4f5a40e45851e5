"""The one small interface between delivery and everything that holds chunks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from bdnfs.core.ranges import chunk_range
from bdnfs.manifest.model import FileEntry


class Chunk(NamedTuple):
    """One chunk of one file version at one pinned revision."""

    revision: str
    file: FileEntry
    number: int

    @property
    def range(self) -> tuple[int, int]:
        """[start, stop) in the file."""
        return chunk_range(self.file.size, self.number)


class Tier(Protocol):
    """Anything that can answer "give me this chunk"."""

    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        """Fill `into` with the chunk's verified bytes; return the name of the tier they are from. None is a miss.

        Raising means that the tier is broken: UnavailableError where another try may help.
        After a cancellation `into` may still be written to: the caller must not use it again.
        """
        ...


class Cluster(Tier, Protocol):
    """A tier that many nodes are, each of which fills itself at the same time."""

    async def bring(
        self,
        chunk: Chunk,
        into: memoryview,
        first: Callable[[], bool] | None = None,
        then: Callable[[memoryview], None] | None = None,
    ) -> str | None:
        """As `get`, with what comes before (False: not to ask) and after it in the same thread.

        Raises what first and then raise. Where there is nobody to ask neither is called.
        """
        ...

    async def arranged(self, chunks: Sequence[Chunk], /) -> list[int]:
        """Return the places of chunks in the order in which to ask for them, so that all get most from each other."""
        ...
