"""The training cache: what a project's and a team's jobs keep for each other, until the project is deleted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CACHE_BYTES_MAX = 10**12
SORT_KEYS = ("filepath", "size", "modified", "type", "permissions")
SortKey = Literal["filepath", "size", "modified", "type", "permissions"]


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One file or directory. size_bytes: what it takes on the disk; a directory's is all below it."""

    path: str
    size_bytes: int
    modified_s: float
    file_type: Literal["file", "directory", "symlink", "other"]
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
    raise NotImplementedError


def team_cache(home: Path, team: str) -> Path:
    """As project_cache, for a team: at BT_TEAM_CACHE_DIR."""
    raise NotImplementedError


def delete_project_cache(home: Path, project: str) -> int:
    """Delete a project's cache; return the bytes freed. The team's stays. No cache is no error.

    No job of the project may be active (the caller knows).
    """
    raise NotImplementedError


def check_room(directory: Path, cap_bytes: int = CACHE_BYTES_MAX) -> int:
    """Return the bytes a cache holds; raise SpaceError, with numbers and what to do, where it is at its cap.

    For DEPLOYING: a job whose cache is full doesn't start.
    """
    raise NotImplementedError


@contextmanager
def watched(
    directory: Path, cap_bytes: int, on_full: Callable[[str], None], *, every_s: float = 30.0
) -> Iterator[None]:
    """Measure a cache while a job runs, at most every every_s, in a thread; tell on_full a line when it is over.

    It is told once each time the cap is passed, from the thread. A directory has no cap the kernel would hold
    (that takes project quotas): what a job writes between two looks can exceed it, and then on_full decides.
    """
    raise NotImplementedError
    yield


def summarize(
    directory: Path,
    *,
    sort: SortKey = "filepath",
    order: Literal["asc", "desc"] = "asc",
    cap_bytes: int = CACHE_BYTES_MAX,
) -> CacheSummary:
    """List a cache, each file and directory with its size; hard links are counted once, links not followed."""
    raise NotImplementedError
