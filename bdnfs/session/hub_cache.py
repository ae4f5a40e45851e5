"""What a Hugging Face cache directory holds: for each commit, the files of it that were downloaded.

    models--org--name/snapshots/<commit>/path -> ../../blobs/<digest>     datasets--org--name/…
    blobs/ab/<xet hash>     shared by repositories: their blobs/<digest> are links into it

A blob's name is what the Hub calls its content: the sha256 (64 digits) or the git blob's sha1 (40).
Without symlinks (some network mounts, Windows) the files stand in the snapshot themselves, nameless.
Everything here may lie: a link is followed only to where that layout has it, by its text, and whether
a file is what its name says only its bytes tell.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bdnfs.core.errors import SpecError, UpstreamError
from bdnfs.manifest.paths import check_path
from bdnfs.spec.source import Source, parse_source

_DIGESTS = {64: "sha256", 40: "git-sha1"}
_HEX = re.compile("[0-9a-f]+", re.ASCII)
_SHARED = re.compile(r"([0-9a-f]{2})/(?:\1)[0-9a-f]{62}", re.ASCII)
_KINDS = {"models": "", "datasets": "datasets/"}

LeaveOut = Callable[[Path, str], None]


@dataclass(frozen=True)
class Held:
    """One downloaded file. place: where its bytes lie; digest: what its name says it is, None without one."""

    path: str
    place: Path
    size: int
    digest: str | None


@dataclass(frozen=True)
class Download:
    """What is there of one repository at one commit; no claim that it is all. files: in path order."""

    source: Source
    files: tuple[Held, ...]


def scan(directory: Path, leave_out: LeaveOut) -> list[Download]:
    """Return what the cache directory holds, the latest download first.

    leave_out is called with each thing that was expected to be a download, and why it can't be one. Raises
    SpecError where the directory can't be read, or is no such cache.
    """
    directory = _absolute(directory)
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise SpecError(
            f"{directory}: can't be read as a Hugging Face cache ({error.strerror}); name the directory that "
            "holds models--…, usually ~/.cache/huggingface/hub"
        ) from error
    found: list[tuple[int, Download]] = []
    repositories = [name for name in names if name.partition("--")[0] in (*_KINDS, "spaces") and "--" in name]
    for name in repositories:
        found += _repository(directory, name, leave_out)
    if not repositories:
        inside = ", such as its hub/" if "hub" in names else ""
        raise SpecError(
            f"{directory}: holds no models--… or datasets--…, so it is no Hugging Face cache; name the directory "
            f"that does{inside}"
        )
    return [download for _, download in sorted(found, key=lambda item: -item[0])]


def _repository(directory: Path, name: str, leave_out: LeaveOut) -> Iterator[tuple[int, Download]]:
    """Yield what is there of each commit, and when it came there (nanoseconds)."""
    repository = directory / name
    kind, *parts = name.split("--")
    if kind not in _KINDS:
        leave_out(repository, "is a space, which no source names")
        return
    snapshots = repository / "snapshots"
    try:
        status = os.lstat(snapshots)
        commits = sorted(os.listdir(snapshots)) if stat.S_ISDIR(status.st_mode) else []
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            leave_out(snapshots, f"can't be read ({error.strerror})")
        return
    for commit in commits:
        place = snapshots / commit
        try:
            source = parse_source(f"hf://{_KINDS[kind]}{'/'.join(parts)}@{commit}")
        except SpecError as error:
            leave_out(place, f"names no repository at a commit ({error})")
            continue
        if not source.pinned:
            leave_out(place, "is no commit's")
            continue
        files = sorted(_files(repository, place, leave_out), key=lambda file: file.path)
        if files:
            yield _mtime_ns(place), Download(source, tuple(files))


def _files(repository: Path, snapshot: Path, leave_out: LeaveOut) -> Iterator[Held]:
    directories = [snapshot]
    while directories:
        directory = directories.pop()
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as error:
            leave_out(directory, f"can't be read ({error.strerror})")
            continue
        for entry in entries:
            place = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                directories.append(place)
                continue
            path = place.relative_to(snapshot).as_posix()
            try:
                check_path(path, str(snapshot))
                yield _held(repository, place, path)
            except UpstreamError:
                leave_out(place, "has a name that no tree can hold")
            except _NotHeldError as error:
                leave_out(place, str(error))
            except OSError as error:
                leave_out(place, f"can't be read ({error.strerror})")


class _NotHeldError(Exception):
    """Why something in a snapshot is no download."""


def _held(repository: Path, place: Path, path: str) -> Held:
    digest = None
    if place.is_symlink():
        blob = _target(place)
        algorithm = _DIGESTS.get(len(blob.name)) if _HEX.fullmatch(blob.name) else None
        if blob.parent != _absolute(repository / "blobs") or algorithm is None:
            raise _NotHeldError(
                "is a link to something else than its repository's blobs, which is not followed"
            )
        digest, place = f"{algorithm}:{blob.name}", blob
        if place.is_symlink():
            shared, place = _absolute(repository.parent / "blobs"), _target(place)
            if not place.is_relative_to(shared) or not _SHARED.fullmatch(
                place.relative_to(shared).as_posix()
            ):
                raise _NotHeldError(f"its blob {blob} is a link out of the cache, which is not followed")
    status = os.lstat(place)
    if not stat.S_ISREG(status.st_mode):
        raise _NotHeldError(f"{place} is no plain file")
    return Held(path, place, status.st_size, digest)


def _target(link: Path) -> Path:
    return _absolute(link.parent / os.readlink(link))


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # by its text alone: what it names may be a link itself


def _mtime_ns(path: Path) -> int:
    try:
        return os.lstat(path).st_mtime_ns
    except OSError:
        return 0
