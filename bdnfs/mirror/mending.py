"""The names of versions, torn or lost: found, and written again from what says the same.

A version's row stands twice, under its digest and under upstream's revision; head and tags only point.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from bdnfs.core.errors import IntegrityError
from bdnfs.mirror.versions import JSON_TYPE, VersionRow, Versions


class Torn(NamedTuple):
    """A name that says nothing. row: what it should say, None where that is to be made anew, or nobody knows."""

    key: str
    why: str
    row: VersionRow | None


@dataclass
class _Volume:
    """What is there of one volume: rows and pointers by their keys, None where one can't be read."""

    versions: dict[str, VersionRow | None] = field(default_factory=dict)
    revisions: dict[str, VersionRow | None] = field(default_factory=dict)
    pointers: dict[str, str | None] = field(default_factory=dict)


def torn(versions: Versions) -> list[Torn]:
    """Return every name of the tenant's that can't be read, or that another one says should be there."""
    volumes: dict[str, _Volume] = {}
    for found in versions.store.list(f"volumes/{versions.org}/"):
        parts = found.key.split("/")
        place, kind = "/".join(parts[:4]), parts[4].removesuffix(".json")
        volume = volumes.setdefault(place, _Volume())
        if kind in ("versions", "revisions"):
            (volume.versions if kind == "versions" else volume.revisions)[found.key] = versions.row_at(
                found.key
            )
        elif kind != "listings":
            volume.pointers[found.key] = versions.pointed_at(found.key)
    return [each for place, volume in sorted(volumes.items()) for each in _of(place, volume)]


def _of(place: str, volume: _Volume) -> Iterator[Torn]:
    told = {_key(place, row.digest): row for row in volume.revisions.values() if row is not None}
    for key in sorted({*volume.versions, *told}):
        if volume.versions.get(key) is None:
            why = "can't be read" if key in volume.versions else "is not there"
            yield Torn(key, why, told.get(key))
    for key, row in sorted(volume.revisions.items()):
        if row is None:
            yield Torn(key, "can't be read", None)
    whole = {key for key, row in volume.versions.items() if row is not None} | set(told)
    for key, digest in sorted(volume.pointers.items()):
        if digest is None or _key(place, digest) not in whole:
            why = "can't be read" if digest is None else "names a version that is not there"
            yield Torn(key, why, None)


def mend(versions: Versions, found: Iterable[Torn]) -> None:
    """Write again what is known, and delete the rest: what points is made anew, at the last version."""
    places = set()
    for name in found:
        if name.row is not None:
            versions.store.put(name.key, msgspec.json.encode(name.row), JSON_TYPE, "any")
        else:
            versions.store.delete([name.key])
        places.add(tuple(name.key.split("/")[2:4]))
    for namespace, volume in sorted(places):
        # The last first: what points, and is not there, is made to name it.
        rows = sorted(versions.all(namespace, volume), key=lambda row: row.sequence, reverse=True)
        for row in rows:
            versions.name(row)
    versions.store.flush()


def check_names(versions: Versions) -> None:
    """Raise IntegrityError where a name is torn: what it needs can't be told."""
    for name in torn(versions):
        raise IntegrityError(
            f"{versions.store.name}: {name.key} {name.why}; `bdnfs mirror verify --repair` first. "
            "Nothing was collected: what it needs can't be told"
        )


def _key(place: str, digest: str) -> str:
    return f"{place}/versions/{digest.removeprefix('b3:')}.json"
