import io

import pytest

from bdnfs.origins.floor import FLOOR_BYTES, Floor, FlooredReader


def test_the_first_byte_may_take_its_time() -> None:
    floor = Floor(1.0)
    floor.note(1, 100.0)
    floor.note(1, 0.5)
    with pytest.raises(TimeoutError):
        floor.note(1, 0.6)


def test_enough_bytes_open_a_new_window() -> None:
    floor = Floor(1.0)
    floor.note(1, 0.0)
    for _ in range(10):
        floor.note(FLOOR_BYTES, 1.0)
    with pytest.raises(TimeoutError):
        floor.note(FLOOR_BYTES - 1, 1.0)


def test_the_end_of_a_stream_is_no_trickle() -> None:
    floor = Floor(1.0)
    floor.note(1, 0.0)
    floor.note(0, 5.0)


def test_a_reader_hands_bytes_through() -> None:
    class Raw(io.BytesIO):
        pass

    raw = Raw(b"x" * 100_000)
    reader = io.BufferedReader(FlooredReader(raw, 1.0))  # type: ignore[arg-type]
    assert reader.read() == b"x" * 100_000
    reader.close()
    assert raw.closed
