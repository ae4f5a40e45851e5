"""The files that are read, made of their names: every process can say what each byte must be."""

from functools import cache

from blake3 import blake3

from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.units import MIB

PAGE = 4096
# Keeps the mount from being whole for as long as the test holds it back; nobody reads it before.
HELD = "held.bin"

SIZES = {
    "config.json": 700,
    "empty.bin": 0,
    "one.bin": 1,
    "page.bin": PAGE,
    "page-and-one.txt": PAGE + 1,
    "deep/er/odd.safetensors": 3 * MIB + 777,
    "chunk.safetensors": CHUNK_BYTES,
    "zeros.safetensors": 2 * MIB,
    "model.safetensors": 2 * CHUNK_BYTES + 12_345,
    HELD: CHUNK_BYTES,
    **{f"many/{number:03}.txt": 10 + number for number in range(40)},
}
READ = tuple(path for path in SIZES if path != HELD)
# Holes are allowed here alone: the rest is as random as a hash.
ZEROS = ("zeros.safetensors", MIB // 2, MIB + MIB // 2 + 5)


@cache
def content(path: str) -> bytes:
    """Return the bytes of a file."""
    data = blake3(path.encode()).digest(length=SIZES[path]) if SIZES[path] else b""
    name, start, stop = ZEROS
    return data[:start] + bytes(stop - start) + data[stop:] if path == name else data


def files() -> dict[str, bytes]:
    """Return all of them, for an upstream to serve."""
    return {path: content(path) for path in SIZES}
