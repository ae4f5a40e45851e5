"""Range headers against what they mean by RFC 9110, and what S3 makes of several."""

from hypothesis import given
from hypothesis import strategies as st

from bdnfs.serve.bucket import asked_range

_SIZES = st.integers(0, 50)


@given(_SIZES, st.integers(0, 60), st.integers(0, 60))
def test_from_to(size: int, first: int, last: int) -> None:
    data = bytes(range(size))
    found = asked_range(f"bytes={first}-{last}", size)
    if last < first:
        assert found is None
    else:
        assert found is not None
        assert data[found.start : found.stop] == data[first : last + 1]
        assert bool(found) == (first < size)


@given(_SIZES, st.integers(0, 60))
def test_from_and_last(size: int, number: int) -> None:
    data = bytes(range(size))
    begun, ending = asked_range(f"bytes={number}-", size), asked_range(f"bytes=-{number}", size)
    assert begun is not None
    assert ending is not None
    assert data[begun.start : begun.stop] == data[number:]
    assert data[ending.start : ending.stop] == (data[-number:] if number else b"")


@given(_SIZES, st.text(max_size=20) | st.none())
def test_whatever_comes(size: int, header: str | None) -> None:
    found = asked_range(header, size)
    assert found is None or 0 <= found.start <= size or not found
