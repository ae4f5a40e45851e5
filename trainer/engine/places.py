"""The absolute places of a job: directories made on the host to mount on, and removed when nobody does any more.

Whatever is made is written down first, for all homes of this machine together: two jobs, of two users of one
root account even, meet at the same `/b10/workspace`. A directory goes only while no mount namespace shows a
mount at or below it; whoever makes one holds the lock until its mount shows.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.engine.directory import read_json, write_json
from trainer.engine.locks import locked
from trainer.errors import PlaceError

_REGISTRY = Path("/var/lib/bdnfs-trainer")
_TIMEOUT_S = 60.0


def registry() -> Path:
    """Return the directory in which this user's jobs note what they have made."""
    if os.geteuid() == 0:
        return _REGISTRY
    return Path(os.path.expanduser("~")) / ".local/state/bdnfs-trainer"


@contextmanager
def making(locations: Iterable[str]) -> Iterator[None]:
    """Make locations; in the block they are mounted on. Raises PlaceError where one can't be made."""
    with _held():
        missing = sorted({each for location in locations for each in _absent(location)})
        if missing:
            write_json(registry() / "made.json", sorted({*_made(), *missing}))
        for path in missing:
            try:
                os.mkdir(path, 0o755)
            except FileExistsError:
                pass
            except OSError as error:
                raise PlaceError(f"making {path}, a place of the job: {error.strerror}") from None
        for location in locations:
            if not os.path.isdir(location):
                raise PlaceError(
                    f"{location}, a place of the job, is there already and is no directory; move it away"
                )
        yield


def give_back() -> None:
    """Remove whatever was made and is mounted on by nobody now; what is not empty stays, and is kept in mind."""
    if not _made():
        return
    with _held():
        made = _made()
        mounted = _mountpoints()
        left = []
        for path in sorted(made, reverse=True):  # what lies deeper goes first
            if any(point == path or point.startswith(f"{path}/") for point in mounted):
                left.append(path)
                continue
            try:
                os.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError:
                left.append(path)
        if sorted(left) != sorted(made):
            write_json(registry() / "made.json", sorted(left))


@contextmanager
def _held() -> Iterator[None]:
    try:
        registry().mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise PlaceError(f"making {registry()}, where places are noted: {error.strerror}") from None
    with locked(registry() / "places.lock", _TIMEOUT_S):
        yield


def _made() -> list[str]:
    found = read_json(registry() / "made.json")
    return [path for path in found if isinstance(path, str)] if isinstance(found, list) else []


def _absent(location: str) -> list[str]:
    """Return location and those of its parents that are not there."""
    path, found = Path(location), list[str]()
    while not os.path.lexists(path) and path != path.parent:
        found.append(str(path))
        path = path.parent
    return found


def _mountpoints() -> set[str]:
    """Return every mountpoint of every mount namespace that a process is in."""
    seen: set[str] = set()
    found: set[str] = set()
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        # It ended, or is another user's.
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            lines = Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines()
            seen.add(namespace)
            found.update(os.fsdecode(_decoded(line.split(b" ")[4])) for line in lines)
    return found


def _decoded(path: bytes) -> bytes:
    """Undo mountinfo's octal escapes (proc_pid_mountinfo(5))."""
    for octal, plain in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(octal, plain)
    return path
