"""Sizes and durations as people write them: `1.5TiB`, `30m`, `7d`."""

import re
from collections.abc import Iterable

from bdnfs.core.errors import SpecError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

# 1980-01-01T00:00:00Z, the oldest date every archive format can hold: what each file of a tree shows.
TREE_MTIME_S = 315_532_800

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "k": KIB,
    "kib": KIB,
    "kb": 10**3,
    "m": MIB,
    "mib": MIB,
    "mb": 10**6,
    "g": GIB,
    "gib": GIB,
    "gb": 10**9,
    "t": TIB,
    "tib": TIB,
    "tb": 10**12,
}
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_TEXT_CHARS_MAX = 40
_QUANTITY = re.compile(r"\s*([0-9]+)(?:\.([0-9]+))?\s*([A-Za-z]*)\s*", re.ASCII)


# Beyond what any disk or wait can be; keeps arithmetic exact and finite.
SIZE_BYTES_MAX = 1 << 63
DURATION_S_MAX = 100 * 365 * 86400.0


def parse_size(text: str | int) -> int:
    """Return bytes, rounded down, for `1.5TiB`, `200GB`, `4096`; raise SpecError for anything else."""
    expected = "a size such as 1.5TiB, 200GB or 4096"
    whole, decimals, unit = _quantity(text, _SIZE_UNITS, expected)
    scale = _SIZE_UNITS[unit]
    # In integers: a float would lose bytes from 8 PiB up.
    size_bytes = int(whole) * scale + int(decimals or "0") * scale // int("1" + "0" * len(decimals))
    if size_bytes >= SIZE_BYTES_MAX:
        raise SpecError(f"{_shown(text)} is larger than any disk; give {expected}")
    return size_bytes


def parse_duration(text: str | float) -> float:
    """Return seconds for `30m`, `7d`, `1.5h`, `90`; raise SpecError for anything else."""
    expected = "a duration such as 90s, 30m or 7d"
    whole, decimals, unit = _quantity(text, _DURATION_UNITS, expected)
    seconds = float(f"{whole}.{decimals or '0'}") * _DURATION_UNITS[unit]
    if seconds > DURATION_S_MAX:
        raise SpecError(f"{_shown(text)} is longer than a century; give {expected}")
    return seconds


def _quantity(text: str | float, units: Iterable[str], expected: str) -> tuple[str, str, str]:
    """Return the digits before the point, those after it, and the unit."""
    written = text
    if isinstance(text, int | float) and not isinstance(text, bool) and 0 <= text < SIZE_BYTES_MAX:
        written = str(text) if isinstance(text, int) else f"{text:.9f}"
    match = (
        _QUANTITY.fullmatch(written) if isinstance(written, str) and len(written) <= _TEXT_CHARS_MAX else None
    )
    if match is None or match[3].lower() not in units:
        raise SpecError(f"{_shown(text)} is not {expected}")
    return match[1], match[2] or "", match[3].lower()


def _shown(value: object) -> str:
    # Converting a huge number to text is an error of its own.
    if isinstance(value, int) and abs(value) >= SIZE_BYTES_MAX:
        return "a huge number"
    shown = repr(value)
    return shown if len(shown) <= _TEXT_CHARS_MAX else shown[: _TEXT_CHARS_MAX - 1] + "…"


def format_size(size_bytes: float) -> str:
    """Return `1.2 GiB`, `512 B`: three significant digits (four from 1000 up), binary units."""
    for unit, scale in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        # What would be rounded up to 1024 of a unit is 1 of the next.
        if abs(size_bytes) >= scale or abs(size_bytes) >= scale - scale / 2048:
            return f"{_digits(size_bytes / scale)} {unit}"
    return f"{size_bytes:.0f} B"


def format_duration(seconds: float) -> str:
    """Return `0.4 s`, `42 s`, `3 m 20 s`, `5 h 2 m`, `9 d 4 h`."""
    if abs(seconds) < 0.001:
        return "0 s"
    if abs(seconds) < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for name, span, low, low_span in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= span:
            return f"{whole // span} {name} {whole % span // low_span} {low}"
    return f"{whole} s"


def _digits(value: float) -> str:
    # Past three digits the g format turns to exponents.
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def short(revision: str) -> str:
    """Return the first twelve characters of a revision, of a digest its first twelve digits."""
    return revision[: 15 if revision.startswith("b3:") else 12]
