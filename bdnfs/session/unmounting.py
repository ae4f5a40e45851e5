"""`unmount`, and what dead or stalled daemons left: mounts, records and directories are taken away.

Nothing here needs the index: a stopped daemon may hold its lock.
"""

import contextlib
import os
import time

from bdnfs.cache.layout import Layout
from bdnfs.core.errors import DeadlineError, MountError
from bdnfs.core.steps import reach
from bdnfs.fs.mountpoints import FUSE_FSTYPE, clear_stale, health, ours
from bdnfs.fs.mounts import Mount, mount_table, top_mount, unmount
from bdnfs.session.control import connect
from bdnfs.session.directories import give_back, is_below, sweep
from bdnfs.session.elsewhere import where
from bdnfs.session.records import (
    MountRecord,
    RecordDirectory,
    location_locks,
    own_namespace,
    record_directories,
    standing,
)

_LISTEN_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 30.0


def unmount_at(layout: Layout, location: str, *, force: bool) -> list[str]:
    """Unmount everything of ours at or below location; return the locations.

    Raises MountError where it is in use (unless force) or nothing of ours is there.
    """
    from bdnfs.fs.users import users_of

    path = os.path.abspath(location)
    cleared = [each for each in clear_dead(layout) if is_below(each, path)]
    found = [
        (directory, record)
        for directory, record in records_at(layout, location)
        if record.namespace in ("", own_namespace())  # another's mounts there are not ours to take away
    ]
    mounts = [mount for mount in mount_table() if ours(mount) and is_below(mount.mountpoint, path)]
    if not found and not mounts:
        if cleared:
            return cleared
        raise MountError(f"{location}: nothing of bdnfs is mounted there; `bdnfs status` lists what is")
    for mount in mounts:
        top = top_mount(mount.mountpoint)
        if top is not None and not ours(top):
            raise MountError(
                f"{mount.mountpoint}: {top.fstype} ({top.source}) was mounted on top by somebody else; "
                "unmount that one first"
            )
    if not force:
        daemons = frozenset(pid for directory, _ in found for pid in directory.daemon_pids())
        for mount in mounts:
            busy = users_of(mount, but=daemons)
            if busy:
                raise MountError(
                    f"{mount.mountpoint}: in use by {', '.join(busy[:5])}; end that, or --force "
                    "(what is open of a finished mount lives on)"
                )
        for directory, record in found:
            left = [mounted for mounted in record.mounts if not is_below(mounted.location, path)]
            busy = [] if left else _users_since_before(directory)
            if busy:
                raise MountError(
                    f"{location}: in use by {', '.join(busy[:5])}, through what was opened before its hand-off, or "
                    "elsewhere; end that, or --force: what is open lives on"
                )
    done = [mount.mountpoint for mount in mounts]
    for directory, record in found:
        _unmount_record(layout, directory, record, path)
    for mount in mounts:
        _unbind_exactly(mount)
    recorded = (mounted.location for _, record in found for mounted in record.mounts)
    return sorted({*cleared, *done, *(each for each in recorded if is_below(each, path))})


def _users_since_before(directory: RecordDirectory) -> list[str]:
    """Name who uses the daemon's FUSE session, through whatever mount it was opened."""
    from bdnfs.fs.users import users_of

    if not directory.is_served():
        return []
    try:
        with connect(directory.socket) as control:
            device = control.ask("status").device
    except MountError:
        return []  # it is just ending
    return users_of(None, device=device, but=frozenset(directory.daemon_pids())) if device else []


def _lives_for_open_files(directory: RecordDirectory, record: MountRecord) -> bool:
    """Say whether the daemon has handed everything off, and ends by itself with the last file of before."""
    return record.kind == "native" and bool(_users_since_before(directory))


def _unmount_record(layout: Layout, directory: RecordDirectory, record: MountRecord, path: str) -> None:
    """Take away what the record has at or below path, and with the last of it the daemon."""
    gone = [mounted for mounted in record.mounts if is_below(mounted.location, path)]
    left = tuple(mounted for mounted in record.mounts if mounted not in gone)
    with location_locks(layout, [mounted.location for mounted in gone]):
        if not left and directory.is_served() and not _lives_for_open_files(directory, record):
            with contextlib.suppress(MountError), connect(directory.socket) as control:
                control.send("stop")
            _await_end(directory)
            reach("unmount:stopped")
        for mounted in gone:
            unbind(mounted.location)
        reach("unmount:detached")
        if left:
            directory.write(record.kind, left)
        else:
            directory.remove()
        reach("unmount:removed")
        for mounted in gone:
            give_back(layout, mounted.location)


def _await_end(directory: RecordDirectory) -> None:
    deadline_s = time.monotonic() + _END_TIMEOUT_S
    while directory.is_served():
        if time.monotonic() >= deadline_s:
            raise DeadlineError(
                f"the mount's daemon ({directory.daemon() or 'unseen'}) did not end in {_END_TIMEOUT_S:.0f} s; "
                f"its log is {directory.log}"
            )
        time.sleep(0.02)


def _unbind_exactly(mount: Mount) -> None:
    # Ids are used again: another mount may have this one's by now.
    if any(other[:5] == mount[:5] for other in mount_table()):
        unmount(mount.mountpoint, mount.mount_id)


def unbind(location: str) -> None:
    mount = top_mount(location)
    if mount is not None and ours(mount):
        unmount(location, mount.mount_id)


def records_at(layout: Layout, location: str) -> list[tuple[RecordDirectory, MountRecord]]:
    path = os.path.abspath(location)
    found = []
    for directory in record_directories(layout):
        record = directory.read()
        if record and any(is_below(mounted.location, path) for mounted in record.mounts):
            found.append((directory, record))
    return found


def clear_dead(layout: Layout) -> list[str]:
    """Take away what dead or stalled daemons left: mounts, directories, records of what is gone.

    A daemon is stalled when neither its control socket nor its FUSE session answers; it is killed.
    """
    cleared: list[str] = []
    for directory in record_directories(layout):
        record = directory.read()
        found = "here" if record is None else where(layout, record)
        if found == "gone":
            directory.remove()  # and below, `sweep` gives back the directories that were made for it
        if found != "here":
            continue
        if directory.is_served():
            if record is None or not _is_stalled(directory, record):
                continue
            directory.kill_daemon()
        if record is None:
            with contextlib.suppress(FileNotFoundError):  # another command was faster
                if time.time() - directory.path.stat().st_mtime > _LISTEN_TIMEOUT_S:
                    clear_stale(str(directory.fuse), stalled=True)
                    directory.remove()
            continue
        cleared += clear_record(layout, directory, record)
    sweep(layout)
    return cleared


def _is_stalled(directory: RecordDirectory, record: MountRecord) -> bool:
    try:
        with connect(directory.socket) as control:
            control.ask("status")
    except DeadlineError:
        mounts = [mount for mounted in record.mounts if (mount := top_mount(mounted.location)) is not None]
        return all(health(mount) != "alive" for mount in mounts if mount.fstype == FUSE_FSTYPE)
    except MountError:
        pass  # it is just starting, or ending
    return False


def clear_record(layout: Layout, directory: RecordDirectory, record: MountRecord) -> list[str]:
    cleared = []
    gone = []
    clear_stale(str(directory.fuse), stalled=True)
    for mounted in record.mounts:
        if record.kind == "fuse" and clear_stale(mounted.location, stalled=True):
            cleared.append(mounted.location)
        if standing(mounted.location) is None:
            gone.append(mounted)
    if len(gone) == len(record.mounts):
        directory.remove()
    elif gone:
        with contextlib.suppress(FileNotFoundError):  # another command has removed it meanwhile
            directory.write(record.kind, tuple(mounted for mounted in record.mounts if mounted not in gone))
    for mounted in gone:
        give_back(layout, mounted.location)
    return cleared
