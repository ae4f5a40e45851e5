"""From what the user gives, a spec file or one source, to a checked Spec."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bdnfs.core.errors import SpecError
from bdnfs.spec.auth import WeightsAuth
from bdnfs.spec.document import read_document
from bdnfs.spec.fields import Position, mapping, shown, text, texts
from bdnfs.spec.locations import Placed, absolute, check_apart, check_location, place
from bdnfs.spec.patterns import PATTERNS_MAX, Patterns
from bdnfs.spec.source import is_source_text, parse_source, redacted
from bdnfs.spec.weights import Spec, Weights

__all__ = ["Placed", "load_spec", "parse_spec", "place"]

WEIGHTS_MAX = 1000
_WEIGHTS_FIELDS = (
    "source",
    "mount_location",
    "allow_patterns",
    "ignore_patterns",
    "auth",
    "auth_secret_name",
)


def load_spec(given: str, mountpoint: str | None = None, *, cwd: str = "/") -> Spec:
    """Return the spec that given names: one source (`scheme://…`), or the path of a file.

    That is a spec in YAML or JSON, a truss config.yaml with weights, or a config.py of a training job.

    A source appears at mountpoint (made absolute against cwd), or at `.` if there is none, which
    `place` refuses. Raises SpecError, naming the place in the file, for whatever is wrong.
    """
    if is_source_text(given):
        location = "." if mountpoint is None else absolute(mountpoint, cwd, "MOUNTPOINT")
        if location != ".":
            check_location(location, redacted(given))
        return Spec((Weights(parse_source(given), location),))
    path = os.path.join(cwd, given)
    if not os.path.lexists(path):
        hint = f"; a source needs its scheme: hf://{given}" if _looks_like_repo(given) else ""
        raise SpecError(
            f"can't read the spec {shown(given)}: no such file{hint or '; name a spec.yaml, or a source'}"
        )
    document, warnings = _read(path)
    spec = parse_spec(document, os.path.basename(path))
    return Spec(spec.weights, path, warnings)


def _read(path: str) -> tuple[object, tuple[str, ...]]:
    """Return a file's content as that of a spec, and warnings about it. Other programs' files: see foreign.py."""
    if path.endswith(".py"):
        from bdnfs.spec.foreign import python_weights

        return python_weights(path)
    document = read_document(path, "the spec")
    if isinstance(document, Mapping) and document.keys() != {"weights"}:
        from bdnfs.spec.foreign import truss_weights

        document = truss_weights(document)
    return document, ()


def parse_spec(data: object, where: str) -> Spec:
    """Return the Spec in data, a document's plain content; raise SpecError naming where and what is wrong."""
    at = Position(where)
    if data is None:
        raise SpecError(f"{at}: is empty; declare at least one source below 'weights:'")
    found = mapping(data, ("weights",), at)
    listed = found.get("weights")
    at = at.key("weights")
    if not isinstance(listed, list | tuple):
        raise SpecError(
            f"{at}: expected a list of sources, each with source and mount_location; found {shown(listed)}"
        )
    if not listed:
        raise SpecError(f"{at}: declares nothing; give at least one source, or leave bdnfs out")
    if len(listed) > WEIGHTS_MAX:
        raise SpecError(f"{at}: declares {len(listed)} sources; at most {WEIGHTS_MAX} are taken")
    weights = tuple(_weights(item, at.item(index)) for index, item in enumerate(listed))
    named = [(each.mount_location, str(at.item(i).path)) for i, each in enumerate(weights)]
    # Absolute and relative ones can be compared only once they are placed.
    check_apart([each for each in named if each[0].startswith("/")], where)
    check_apart([each for each in named if not each[0].startswith("/")], where)
    return Spec(weights)


def _weights(data: object, at: Position) -> Weights:
    found = mapping(data, _WEIGHTS_FIELDS, at)
    for name in ("source", "mount_location"):
        if name not in found:
            raise SpecError(f"{at.key(name)}: is missing; every source needs source and mount_location")
    with _at(at.key("source")):
        # Not through text(): its errors would show a password or a signature.
        source = parse_source(found["source"]) if isinstance(found["source"], str) else None
    if source is None:
        raise SpecError(
            f"{at.key('source')}: expected text such as hf://org/repo, found {shown(found['source'])}"
        )
    location = text(found["mount_location"], at.key("mount_location"))
    allow, ignore = (
        texts(found.get(name, ()), at.key(name), count_max=PATTERNS_MAX) for name in _WEIGHTS_FIELDS[2:4]
    )
    with _at(at):
        patterns = Patterns(allow, ignore)
    location, auth = check_location(location, str(at)), _auth(found, at)
    with _at(at.key("auth")):
        return Weights(source, location, patterns, auth)


def _auth(found: Mapping[str, object], at: Position) -> WeightsAuth | None:
    beside, inside = found.get("auth_secret_name"), found.get("auth")
    fields: dict[str, str] = {}
    if inside is not None:
        here = at.key("auth")
        known = mapping(inside, WeightsAuth.__struct_fields__, here)
        fields = {name: text(value, here.key(name)) for name, value in known.items() if value != ""}
        if "auth_method" not in fields:
            raise SpecError(
                f"{here.key('auth_method')}: is missing; CUSTOM_SECRET goes with auth_secret_name"
                " (or put auth_secret_name beside source, without auth)"
            )
    if beside is not None and beside != "":
        if fields:
            raise SpecError(
                f"{at.key('auth_secret_name')}: credentials are named in auth too; keep one of the two places"
            )
        fields = {
            "auth_method": "CUSTOM_SECRET",
            "auth_secret_name": text(beside, at.key("auth_secret_name")),
        }
        at = at.key("auth_secret_name")
    if not fields:
        return None
    with _at(at.key("auth") if inside else at):
        return WeightsAuth(**fields)


@contextmanager
def _at(at: Position) -> Iterator[None]:
    """Put the place in front of an error that does not know it."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{at}: {error}") from None


def _looks_like_repo(text: str) -> bool:
    return (
        text.count("/") == 1
        and not text.startswith((".", "/", "~"))
        and not text.endswith((".yaml", ".yml", "/"))
    )
