"""A range of a file, also of an upstream that has none."""

from bdnfs.core.errors import UnavailableError
from bdnfs.manifest.model import FileEntry
from bdnfs.origins.base import Origin


def read_range(origin: Origin, revision: str | None, file: FileEntry, start: int, into: memoryview) -> None:
    """Fill `into` from byte start of a file; without ranges the file is streamed up to there.

    Raises what the origin raises, UnavailableError where its stream ends before.
    """
    if file.ranged:
        origin.read(revision, file, start, into)
        return
    offset, stop = 0, start + len(into)
    for piece in origin.stream(revision, file):
        first, last = max(start, offset), min(stop, offset + len(piece))
        if first < last:
            into[first - start : last - start] = piece[first - offset : last - offset]
        offset += len(piece)
        if offset >= stop:
            return
    raise UnavailableError(f"{file.path}: upstream's stream ended after {offset} of {file.size} bytes")
