"""What stands mounted: one directory under `mounts/` for each call of `mount` that still does.

A record is only a memory. Whether something is mounted, the mount table says; whether a daemon
lives, the lock on its directory's `lock` file says. Records that have outlived both are cleared.
"""

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

import msgspec

from bdnfs.cache.layout import Layout, empty, read_file
from bdnfs.cache.locks import holders, is_held, lock_until, open_lock_file, openers, try_lock, who_holds
from bdnfs.core.errors import UNREADABLE, DeadlineError
from bdnfs.core.steps import reach
from bdnfs.fs.mountpoints import ours
from bdnfs.fs.mounts import Mount, mount_table, resolve, sees_every_process
from bdnfs.spec.config import CacheConfig

DAEMON_MODULE = "bdnfs.session.daemon"
LOCATION_TIMEOUT_S = 120.0


# A record is a file, and what a damaged one holds must not become a question to the kernel.
AbsolutePath = Annotated[str, msgspec.Meta(pattern="^/[^\0]*$")]


class Mounted(msgspec.Struct, frozen=True):
    """One source at one location, as `record.json` holds it."""

    location: AbsolutePath
    source: str
    revision: str
    snapshot_id: str


class MountRecord(msgspec.Struct, frozen=True):
    """One call of `mount`. kind: native (no daemon) or fuse.

    namespace: the mount namespace it mounted in, as in `mnt:[4026531841]`
    kept:      a process holds the pins of native mounts (see keeper.py)
    """

    id: str
    kind: str
    created_s: float
    mounts: tuple[Mounted, ...]
    namespace: str = ""
    kept: bool = False


class RecordDirectory:
    """`mounts/<id>/`: record, lock, control socket, log and the FUSE session's mountpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = path / "control.sock"
        self.log = path / "daemon.log"
        self.fuse = path / "fs"
        self._lock = path / "lock"

    @classmethod
    def make(cls, layout: Layout) -> "RecordDirectory":
        path = layout.mounts / secrets.token_hex(6)
        path.mkdir(mode=0o700)
        made = cls(path)
        made.fuse.mkdir(mode=0o700)
        return made

    @property
    def id(self) -> str:
        return self.path.name

    def write(self, kind: str, mounts: tuple[Mounted, ...]) -> None:
        kept = not sees_every_process()
        record = MountRecord(self.id, kind, time.time(), mounts, own_namespace(), kept)
        draft = self.path / f".record.{secrets.token_hex(4)}"
        draft.write_bytes(msgspec.json.encode(record))
        draft.rename(self.path / "record.json")
        reach("mount:recorded")

    def read(self) -> MountRecord | None:
        try:
            return msgspec.json.decode(read_file(self.path / "record.json"), type=MountRecord)
        except (OSError, *UNREADABLE):
            return None

    def hold(self) -> int | None:
        """Take the daemon's lock for as long as the process lives; None where another has it."""
        fd = open_lock_file(self._lock)
        if try_lock(fd, exclusive=True):
            return fd
        os.close(fd)
        return None

    def share(self) -> None:
        """Say that a call which did not mount this has told its user that it stands."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / "shared").touch(mode=0o600)

    def is_shared(self) -> bool:
        return (self.path / "shared").exists()

    def is_served(self) -> bool:
        """Say whether the record's daemon lives."""
        return is_held(self._lock)

    def kill_daemon(self) -> None:
        """End a daemon that doesn't answer; its locks and its FUSE session go with it."""
        for pid in self.daemon_pids():
            os.kill(pid, signal.SIGKILL)

    def daemon_pids(self) -> list[int]:
        """Return the daemon's pid, as far as it can be seen from here.

        Other commands open the lock too, to see whether it is held.
        """
        return [pid for pid in openers(self._lock) if _is_daemon(pid)]

    def daemon(self) -> str | None:
        return next(iter(holders(self._lock)), None)

    def remove(self) -> None:
        empty(self.path)


def own_namespace() -> str:
    """Return our mount namespace, as in `mnt:[4026531841]`."""
    return os.readlink("/proc/self/ns/mnt")


def standing(location: str) -> Mount | None:
    """Return our mount at location, the topmost if there are several; others' may cover it."""
    path = resolve(location)
    return next((each for each in reversed(mount_table()) if each.mountpoint == path and ours(each)), None)


def _is_daemon(pid: int) -> bool:
    try:
        return DAEMON_MODULE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def prepared_layout(config: CacheConfig) -> Layout:
    """Return the places of the cache directory, checked and made, for what needs no index."""
    layout = Layout(Path(config.directory))
    layout.prepare()
    return layout


def record_directories(layout: Layout) -> list[RecordDirectory]:
    """Return every record, oldest first."""
    found = []
    for entry in os.scandir(layout.mounts):
        with contextlib.suppress(FileNotFoundError):  # another command has just removed it
            if entry.is_dir(follow_symlinks=False):
                found.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
    return [RecordDirectory(Path(path)) for _, path in sorted(found)]


def location_file(layout: Layout, location: str, kind: str) -> Path:
    """Return where something about a location is kept beside the records."""
    return layout.mounts / f"{blake2b(location.encode(), digest_size=12).hexdigest()}.{kind}"


@contextmanager
def location_lock(layout: Layout, location: str, timeout_s: float, *, shared: bool = False) -> Iterator[None]:
    """Hold what keeps two commands from changing the mounts at location at the same time.

    shared: others may mount there too, each in a namespace of its own, but nobody may tidy up.
    Raises DeadlineError where another command holds it for longer than timeout_s.
    """
    path = location_file(layout, location, "lock")
    fd = open_lock_file(path)
    try:
        if not lock_until(fd, exclusive=not shared, deadline_s=time.monotonic() + timeout_s):
            raise DeadlineError(
                f"{location}: another command has been at this mountpoint for {timeout_s:g} s "
                f"({who_holds(path)}); end it, then try again"
            )
        yield
    finally:
        os.close(fd)


@contextmanager
def location_locks(
    layout: Layout, locations: Sequence[str], timeout_s: float = LOCATION_TIMEOUT_S, *, shared: bool = False
) -> Iterator[None]:
    """Hold the locks of several locations, always taken in the same order."""
    with ExitStack() as locks:
        for location in sorted(set(locations)):
            locks.enter_context(location_lock(layout, location, timeout_s, shared=shared))
        yield
