import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.ranges import CHUNK_BYTES, chunk_count, chunk_range, chunks_of

SIZES = st.integers(0, 5 * CHUNK_BYTES + 3)


@pytest.mark.parametrize(
    ("size_bytes", "count"), [(0, 0), (1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (3 * CHUNK_BYTES, 3)]
)
def test_a_file_has_as_many_chunks_as_it_needs(size_bytes: int, count: int) -> None:
    assert chunk_count(size_bytes) == count


@given(SIZES)
def test_the_chunks_of_a_file_are_the_file_without_gap_or_overlap(size_bytes: int) -> None:
    position = 0
    for index in range(chunk_count(size_bytes)):
        start, stop = chunk_range(size_bytes, index)
        assert start == position
        assert 0 < stop - start <= CHUNK_BYTES
        position = stop
    assert position == size_bytes


@given(SIZES, SIZES)
def test_a_range_touches_exactly_the_chunks_it_shares_a_byte_with(start: int, stop: int) -> None:
    size_bytes = 6 * CHUNK_BYTES
    touched = [
        index
        for index in range(chunk_count(size_bytes))
        if max(start, chunk_range(size_bytes, index)[0]) < min(stop, chunk_range(size_bytes, index)[1])
    ]
    assert list(chunks_of(start, stop)) == touched
