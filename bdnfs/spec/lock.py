"""spec.lock: the revision each source was resolved to. Meant to be read, diffed and committed."""

import contextlib
import os
import re
import time
from collections.abc import Iterable

import msgspec

from bdnfs.core.errors import SpecError
from bdnfs.core.steps import reach
from bdnfs.spec.document import read_document
from bdnfs.spec.fields import Position, mapping, shown, text, texts
from bdnfs.spec.load import WEIGHTS_MAX
from bdnfs.spec.patterns import PATTERNS_MAX, Patterns
from bdnfs.spec.source import Source, parse_source
from bdnfs.spec.weights import Weights

LOCK_VERSION = 1
_HEADER = "# Written by `bdnfs lock`: what each source was resolved to. Keep it beside its spec.\n"
_FIELDS = ("source", "allow_patterns", "ignore_patterns", "revision")
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
# Whatever an origin calls a listing's digest, as long as it is no path and no markup.
_DIGEST = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,199}", re.ASCII)


class Locked(msgspec.Struct, frozen=True):
    """One resolved source.

    source:   as declared, canonical, with the branch or tag it names (`hf://org/repo@main`)
    patterns: as declared; a listing's digest depends on them
    revision: the commit, or the listing's digest, that it stands for
    """

    source: str
    patterns: Patterns
    revision: str

    @property
    def key(self) -> tuple[str, str]:
        return self.source, self.patterns.key


class Lock(msgspec.Struct, frozen=True):
    """All that one spec.lock holds."""

    entries: tuple[Locked, ...]

    def revision_of(self, weights: Weights) -> str | None:
        """Return the immutable revision of weights: its own commit, else the locked one, else None."""
        if weights.source.pinned:
            return weights.source.revision
        wanted = weights.source.text, weights.patterns.key
        return next((entry.revision for entry in self.entries if entry.key == wanted), None)


def locked(weights: Weights, revision: str) -> Locked:
    """Return the entry that says weights stands for revision; raise SpecError if revision can't be one."""
    return Locked(
        weights.source.text, weights.patterns, _revision(revision, weights.source, weights.source.text)
    )


def lock_path(spec_path: str) -> str:
    """Return a spec file's lock file, `spec.lock` beside `spec.yaml`; raise SpecError for a `.lock` file."""
    stem, suffix = os.path.splitext(spec_path)
    if suffix == ".lock":
        raise SpecError(
            f"{shown(spec_path)} is named like a lock file; name the spec itself, such as spec.yaml"
        )
    return stem + ".lock"


def read_lock(path: str) -> Lock | None:
    """Return the lock file at path, None if there is none; raise SpecError if it can't be used."""
    if not os.path.lexists(path):
        return None
    return parse_lock(read_document(path, "the lock file"), path)


def parse_lock(data: object, where: str) -> Lock:
    """Return the Lock in data, a document's plain content; raise SpecError naming where and what is wrong."""
    at = Position(where)
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > LOCK_VERSION:
        raise SpecError(
            f"{at}: has version {shown(version)}, this bdnfs knows {LOCK_VERSION}; use a newer bdnfs"
        )
    found = mapping(data, ("version", "weights"), at)
    if type(version) is not int or version != LOCK_VERSION:
        raise SpecError(
            f"{at.key('version')}: expected {LOCK_VERSION}, found {shown(version)}; run bdnfs lock again"
        )
    listed = found.get("weights", [])
    if not isinstance(listed, list) or len(listed) > WEIGHTS_MAX:
        raise SpecError(
            f"{at.key('weights')}: expected a list of at most {WEIGHTS_MAX}; run bdnfs lock again"
        )
    entries = tuple(_entry(item, at.key("weights").item(index)) for index, item in enumerate(listed))
    seen: set[tuple[str, str]] = set()
    for index, entry in enumerate(entries):
        if entry.key in seen:
            raise SpecError(f"{at.key('weights').item(index)}: {entry.source} is there twice; keep one")
        seen.add(entry.key)
    return Lock(entries)


def write_lock(path: str, entries: Iterable[Locked]) -> None:
    """Write entries to path, whole or not at all; raise SpecError if that fails."""
    import yaml

    unique = {entry.key: entry for entry in entries}
    plain = {"version": LOCK_VERSION, "weights": [_plain(entry) for entry in unique.values()]}
    content = _HEADER + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=1000)
    directory, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(directory, f".{name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        reach("lock:drafted")
        os.replace(temporary, path)
        reach("lock:replaced")
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)
    except OSError as error:
        raise SpecError(
            f"can't write the lock file {path!r}: {error.strerror}; is the directory writable?"
        ) from None
    finally:
        # After the rename it is gone already.
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _plain(entry: Locked) -> dict[str, object]:
    plain: dict[str, object] = {"source": entry.source}
    if entry.patterns.allow:
        plain["allow_patterns"] = list(entry.patterns.allow)
    if entry.patterns.ignore:
        plain["ignore_patterns"] = list(entry.patterns.ignore)
    return {**plain, "revision": entry.revision}


def _entry(data: object, at: Position) -> Locked:
    found = mapping(data, _FIELDS, at)
    allow, ignore = (
        texts(found.get(name, ()), at.key(name), count_max=PATTERNS_MAX) for name in _FIELDS[1:3]
    )
    try:
        source = parse_source(text(found.get("source"), at.key("source")))
        patterns = Patterns(allow, ignore)
    except SpecError as error:
        raise SpecError(f"{at}: {error}") from None
    revision = text(found.get("revision"), at.key("revision"))
    return Locked(source.text, patterns, _revision(revision, source, str(at.key("revision"))))


def _revision(revision: str, source: Source, where: str) -> str:
    if not (_COMMIT if source.scheme == "hf" else _DIGEST).fullmatch(revision):
        expected = "a full commit" if source.scheme == "hf" else "a digest"
        raise SpecError(f"{where}: {shown(revision)} is not {expected}; run bdnfs lock again")
    return revision
