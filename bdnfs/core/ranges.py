"""Half-open byte ranges and the fixed chunks they fall into. Pure arithmetic."""

from bdnfs.core.units import MIB

# The BDN volume format's chunk; a file's last one is shorter.
CHUNK_BYTES = 8 * MIB


def chunk_count(size_bytes: int) -> int:
    """Return how many chunks a file of size_bytes has; an empty file has none here."""
    return -(-size_bytes // CHUNK_BYTES)


def chunk_range(size_bytes: int, index: int) -> tuple[int, int]:
    """Return [start, stop) of chunk index in a file of size_bytes."""
    start = index * CHUNK_BYTES
    return start, min(start + CHUNK_BYTES, size_bytes)


def chunks_of(start: int, stop: int) -> range:
    """Return the indices of the chunks that [start, stop) touches."""
    return range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)) if stop > start else range(0)
