"""Chunks in memory are counted once, however many wait for them, and for as long as one is being sent."""

from bdnfs.serve.node.app import Memory


def test_one_chunk_for_many_counts_once() -> None:
    memory, data, other = Memory(100), memoryview(bytes(60)), memoryview(bytes(60))
    first, second = memory.take(data), memory.take(data)
    assert memory.fits(data)
    assert not memory.fits(other)
    first()
    assert not memory.fits(other)
    second()
    assert memory.fits(other)
    memory.take(other)
    assert not memory.fits(data)
