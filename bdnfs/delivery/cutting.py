"""A stream of a whole file, cut into its chunks: for upstreams without ranges."""

from collections.abc import Iterable, Iterator

from bdnfs.core.errors import UnavailableError
from bdnfs.core.ranges import CHUNK_BYTES, chunk_range
from bdnfs.manifest.model import FileEntry


def chunks_of_stream(file: FileEntry, pieces: Iterable[memoryview]) -> Iterator[tuple[int, memoryview]]:
    """Yield each chunk's number and bytes, valid until the next; raise UnavailableError unless the sizes match."""
    buffer = memoryview(bytearray(min(file.size, CHUNK_BYTES)))
    number, filled = 0, 0
    for piece in pieces:
        while piece:
            start, stop = chunk_range(file.size, number)
            if start >= file.size:
                raise UnavailableError(f"{file.path}: upstream sent more than its {file.size} bytes")
            count = min(len(piece), stop - start - filled)
            buffer[filled : filled + count] = piece[:count]
            filled, piece = filled + count, piece[count:]
            if filled == stop - start:
                yield number, buffer[:filled]
                number, filled = number + 1, 0
    if number < file.chunks:
        came = number * CHUNK_BYTES + filled
        raise UnavailableError(f"{file.path}: upstream's stream ended after {came} of {file.size} bytes")
