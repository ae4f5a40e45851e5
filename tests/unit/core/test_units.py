import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdnfs.core.errors import SpecError
from bdnfs.core.units import (
    DURATION_S_MAX,
    GIB,
    KIB,
    MIB,
    SIZE_BYTES_MAX,
    TIB,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4096", 4096),
        (4096, 4096),
        ("0", 0),
        ("1.5TiB", TIB + TIB // 2),
        ("1.5 tib", TIB + TIB // 2),
        (" 200GB ", 200 * 10**9),
        ("8k", 8 * KIB),
        ("3kB", 3 * 10**3),
        ("3MB", 3 * 10**6),
        ("3M", 3 * MIB),
        ("3GiB", 3 * GIB),
        ("3TB", 3 * 10**12),
        ("1.0000000001KiB", 1024),
        ("9007199254740993", 9007199254740993),
        (9007199254740993, 9007199254740993),
        ("8388607.999999999999TiB", SIZE_BYTES_MAX - 2),
    ],
)
def test_sizes_are_read_exactly(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        -1,
        "1e3",
        "1,5G",
        "1.G",
        ".5G",
        "5 giga",
        "١",
        True,
        pytest.param(10**5000, id="huge"),
        "9" * 30,
        pytest.param("1" * 5000, id="long"),
        "1\x00",
    ],
)
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(SpecError):
        parse_size(text)


@given(st.integers(0, SIZE_BYTES_MAX - 1))
def test_every_number_of_bytes_is_its_own_size(size_bytes: int) -> None:
    assert parse_size(size_bytes) == parse_size(str(size_bytes)) == parse_size(f"{size_bytes}B") == size_bytes


@given(st.integers(0, TIB * 5000))
def test_a_formatted_size_reads_back_within_three_digits(size_bytes: int) -> None:
    text = format_size(size_bytes)
    assert "e" not in text
    assert math.isclose(parse_size(text), size_bytes, rel_tol=0.0062, abs_tol=1)


@given(st.text(max_size=50))
def test_no_text_is_more_than_a_spec_error(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with contextlib.suppress(SpecError):
            assert parse(text) >= 0


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (1.2 * GIB, "1.2 GiB"),
        (999.7 * MIB, "1000 MiB"),
        (1023 * MIB, "1023 MiB"),
        (GIB - 1, "1 GiB"),
        (5000 * TIB, "5000 TiB"),
    ],
)
def test_sizes_are_written_with_three_digits(size_bytes: float, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        (90, 90),
        (1.5, 1.5),
        (0.00001, 0.00001),
        ("30m", 1800),
        ("7d", 604800),
        ("1.5 h", 5400),
        ("250ms", 0.25),
        ("2W", 1209600),
    ],
)
def test_durations_are_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "-5s",
        -0.5,
        math.nan,
        math.inf,
        1e300,
        "99999999d",
        "1M2",
        True,
        pytest.param(10**5000, id="huge"),
    ],
)
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    with pytest.raises(SpecError):
        parse_duration(text)


def test_a_century_is_the_longest_wait() -> None:
    assert parse_duration(f"{DURATION_S_MAX:.0f}") == DURATION_S_MAX


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0000004, "0 s"),
        (0.4, "0.4 s"),
        (9.96, "10 s"),
        (42, "42 s"),
        (59.7, "1 m 0 s"),
        (200, "3 m 20 s"),
        (5 * 3600 + 120, "5 h 2 m"),
        (9 * 86400 + 4 * 3600, "9 d 4 h"),
    ],
)
def test_durations_are_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
