"""Reading untyped documents key by key, with errors that name the place and the nearest right key."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bdnfs.core.errors import SpecError

SHOWN_CHARS_MAX = 120


class Position(NamedTuple):
    """A place in a document, printed as `spec.yaml: weights[0].source`."""

    document: str
    path: str = ""

    def key(self, name: str) -> "Position":
        return Position(self.document, f"{self.path}.{name}" if self.path else name)

    def item(self, index: int) -> "Position":
        return Position(self.document, f"{self.path}[{index}]")

    def __str__(self) -> str:
        return f"{self.document}: {self.path}" if self.path else self.document


def shown(value: object) -> str:
    """Return value as an error may show it: bounded, and never the inside of a list or a mapping."""
    match value:
        case None:
            return "nothing"
        case str():
            return repr(value if len(value) <= SHOWN_CHARS_MAX else value[: SHOWN_CHARS_MAX - 20] + "…")
        case bool():
            return "true" if value else "false"
        case int() | float():
            return (
                f"the number {value!r}"
                if not isinstance(value, int) or abs(value) < 10**30
                else "a huge number"
            )
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
    return f"a {type(value).__name__}"


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that word was most likely meant to be, or None."""
    import difflib  # only on the way to an error

    by_folded = {candidate.lower(): candidate for candidate in candidates}
    # One wrong letter of two is half of the word.
    cutoff = 0.5 if len(word) <= 3 else 0.6
    found = difflib.get_close_matches(word[:64].lower(), by_folded, n=1, cutoff=cutoff)
    return by_folded[found[0]] if found else None


def mapping(value: object, known: Sequence[str], at: Position) -> Mapping[str, object]:
    """Return value if it is a mapping with known keys only; raise SpecError naming the key if not.

    A key without a value counts as left out.
    """
    if not isinstance(value, Mapping):
        raise SpecError(f"{at}: expected a mapping with {', '.join(known)}; found {shown(value)}")
    for key in value:
        if key not in known:
            name = key if isinstance(key, str) else str(shown(key))
            meant = nearest(name, known)
            hint = f"did you mean {meant!r}?" if meant else f"known here: {', '.join(known)}"
            raise SpecError(f"{at.key(_bounded(name))}: unknown key; {hint}")
    return {key: item for key, item in value.items() if item is not None}


def text(value: object, at: Position) -> str:
    """Return value if it is non-empty, printable-safe text; raise SpecError if not."""
    if isinstance(value, bool | int | float):
        raise SpecError(f"{at}: expected text, found {shown(value)}; put it in quotes")
    if not isinstance(value, str):
        raise SpecError(f"{at}: expected text, found {shown(value)}")
    if not value.strip():
        raise SpecError(f"{at}: is empty; write a value or leave the key out")
    reason = unprintable(value)
    if reason:
        raise SpecError(f"{at}: {shown(value)} {reason}")
    return value


def texts(value: object, at: Position, *, count_max: int) -> tuple[str, ...]:
    """Return value, a list of texts, as a tuple; raise SpecError for anything else, a bare string too."""
    if isinstance(value, str):
        raise SpecError(f"{at}: expected a list, found the text {shown(value)}; write it as a list of one")
    if not isinstance(value, list | tuple):
        raise SpecError(f"{at}: expected a list of texts, found {shown(value)}")
    if len(value) > count_max:
        raise SpecError(f"{at}: holds {len(value)} entries; at most {count_max} are taken")
    return tuple(text(item, at.item(index)) for index, item in enumerate(value))


def absolute_path(value: object, at: Position, home: str) -> str:
    """Return value, a path from `/` or `~/` on, normalised; raise SpecError for a relative one."""
    path = text(value, at)
    path = os.path.join(home, path[2:]) if path.startswith("~/") else path
    if not path.startswith("/"):
        raise SpecError(f"{at}: {shown(path)} is relative; write it from '/' or '~/' on")
    return os.path.normpath(path)


def unprintable(value: str) -> str | None:
    """Return why value can't stand in a path, a URL or a header; None if it can."""
    # C0, DEL, C1, and Unicode's own line breaks, which YAML writers turn into blanks.
    if any(char < " " or "\x7f" <= char <= "\x9f" or char in "\u2028\u2029" for char in value):
        return "holds a control character"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None


def _bounded(name: str) -> str:
    return name if len(name) <= 60 and name.isprintable() else shown(name[:60])
