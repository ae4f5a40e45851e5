"""The training cache: what a project's and a team's jobs keep for each other, until the project is deleted."""

import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from blake3 import blake3

from trainer.storage.errors import PlaceError, SpaceError
from trainer.storage.scratch import remove_tree

CACHE_BYTES_MAX = 10**12
SortKey = Literal["filepath", "size", "modified", "type", "permissions"]
FileType = Literal["file", "directory", "symlink", "other"]
SORT_KEYS: tuple[SortKey, ...] = ("filepath", "size", "modified", "type", "permissions")
_NAME_BYTES_MAX = 200
_DELETED = ".deleted-"
# Looking takes time of the disk's: at most a twentieth of it.
_LOOKS_SHARE = 20


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One file or directory.

    path:       relative to the cache
    size_bytes: what it takes on the disk; a directory's is all below it; the further names of a file (hard links)
                take nothing
    """

    path: str
    size_bytes: int
    modified_s: float
    file_type: FileType
    permissions: str


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    directory: Path
    entries: list[CacheEntry]
    files: int
    size_bytes: int
    cap_bytes: int


def project_cache(home: Path, project: str) -> Path:
    """Return the directory of a project's cache below the trainer's home, made if it isn't there.

    project: a name or id; no name leads outside, whatever it is made of. Bind it at BT_PROJECT_CACHE_DIR.
    """
    return _made(home / "cache" / _safe(project))


def team_cache(home: Path, team: str) -> Path:
    """As project_cache, for a team: at BT_TEAM_CACHE_DIR."""
    return _made(home / "teams" / _safe(team))


def delete_project_cache(home: Path, project: str) -> int:
    """Delete a project's cache; return the bytes it took. The team's stays. No cache is no error.

    No job of the project may be active (the caller knows). What a crash left of an earlier deletion goes, too.
    """
    directory = home / "cache" / _safe(project)
    freed = 0
    if directory.exists():
        freed = size_of(directory)
        # From one moment to the next it is gone; a crash leaves no half of a cache behind.
        directory.rename(directory.with_name(f"{_DELETED}{secrets.token_hex(8)}"))
    for each in directory.parent.glob(f"{_DELETED}*"):
        remove_tree(each)
    return freed


def check_room(directory: Path, cap_bytes: int = CACHE_BYTES_MAX) -> int:
    """Return the bytes a cache takes; raise SpaceError, with numbers and what to do, where it is at its cap.

    For DEPLOYING: a job whose cache is full doesn't start.
    """
    size_bytes = size_of(directory)
    if size_bytes >= cap_bytes:
        raise SpaceError(_full(directory, size_bytes, cap_bytes))
    return size_bytes


@contextmanager
def watched(
    directory: Path, cap_bytes: int, on_full: Callable[[str], None], *, every_s: float = 30.0
) -> Iterator[None]:
    """Measure a cache while a job runs, every every_s (seldomer if it is large), in a thread; tell on_full a line
    when it is over its cap.

    It is told once each time the cap is passed, from the thread. A directory has no cap that the kernel would hold
    (that takes project quotas): what a job writes between two looks can exceed it, and then on_full decides.
    """
    ended = threading.Event()

    def watch() -> None:
        was_full, pause_s = False, 0.0
        while not ended.wait(pause_s):
            began_s = time.monotonic()
            size_bytes = size_of(directory)
            pause_s = max(every_s, _LOOKS_SHARE * (time.monotonic() - began_s))
            is_full = size_bytes >= cap_bytes
            if is_full and not was_full:
                on_full(_full(directory, size_bytes, cap_bytes))
            was_full = is_full

    thread = threading.Thread(target=watch, name="training-cache", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def size_of(directory: Path) -> int:
    """Return the bytes that directory takes on the disk, with all below it."""
    return sum(size_bytes for _, _, size_bytes in _walk(directory))


def summarize(
    directory: Path,
    *,
    sort: SortKey = "filepath",
    order: Literal["asc", "desc"] = "asc",
    cap_bytes: int = CACHE_BYTES_MAX,
) -> CacheSummary:
    """List a cache, each file and directory with its size; hard links are counted once, links not followed."""
    below: dict[str, int] = {}
    found: list[tuple[str, os.stat_result, int]] = []
    total = 0
    for path, status, size_bytes in _walk(directory):
        total += size_bytes
        if path == ".":
            continue
        found.append((path, status, size_bytes))
        parent = path
        while parent := os.path.dirname(parent):
            below[parent] = below.get(parent, 0) + size_bytes
    entries = [
        CacheEntry(
            path=path,
            size_bytes=size_bytes + below.get(path, 0),
            modified_s=status.st_mtime,
            file_type=_type(status.st_mode),
            permissions=stat.filemode(status.st_mode),
        )
        for path, status, size_bytes in found
    ]
    keys: dict[SortKey, Callable[[CacheEntry], tuple[object, ...]]] = {
        "filepath": lambda each: (each.path,),
        "size": lambda each: (each.size_bytes, each.path),
        "modified": lambda each: (each.modified_s, each.path),
        "type": lambda each: (each.file_type, each.path),
        "permissions": lambda each: (each.permissions, each.path),
    }
    return CacheSummary(
        directory=directory,
        entries=sorted(entries, key=keys[sort], reverse=order == "desc"),
        files=sum(each.file_type == "file" for each in entries),
        size_bytes=total,
        cap_bytes=cap_bytes,
    )


def _walk(directory: Path) -> Iterator[tuple[str, os.stat_result, int]]:
    """Yield the path, status and bytes of directory ("." itself) and all below it; what vanishes is left out."""
    seen: set[tuple[int, int]] = set()
    pending = [str(directory)]
    while pending:
        place = pending.pop()
        try:
            status = os.lstat(place)
            names = os.listdir(place) if stat.S_ISDIR(status.st_mode) else []
        except OSError:
            continue
        size_bytes = status.st_blocks * 512
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if (status.st_dev, status.st_ino) in seen:
                size_bytes = 0
            seen.add((status.st_dev, status.st_ino))
        yield os.path.relpath(place, directory), status, size_bytes
        pending += [f"{place}/{name}" for name in sorted(names, reverse=True)]


def _safe(name: str) -> str:
    """Return a directory's name for any text: one to one, and never one with a meaning of its own."""
    found = quote(name, safe=" ")
    if found.startswith("."):
        found = f"%2E{found[1:]}"
    if len(found) > _NAME_BYTES_MAX:
        found = f"{found[:_NAME_BYTES_MAX]}-{blake3(name.encode()).hexdigest()[:16]}"
    if not found:
        raise PlaceError("a training cache needs the name of its project or team; found an empty one")
    return found


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlaceError(f"making the training cache {directory}: {error.strerror}") from None
    return directory


def _full(directory: Path, size_bytes: int, cap_bytes: int) -> str:
    return (
        f"the training cache {directory} takes {size_bytes:,} bytes, its cap is {cap_bytes:,}; see what is in it "
        "with `trainer cache summarize PROJECT --sort size --order desc`, delete some, or raise `cache` in the "
        "trainer's config"
    )


def _type(mode: int) -> FileType:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"
