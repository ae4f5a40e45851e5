"""`mount`: binds what is whole, starts a daemon for the rest. No trio here."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import MountError
from bdnfs.core.progress import View
from bdnfs.core.steps import reach
from bdnfs.core.units import short
from bdnfs.fs.mountpoints import ours
from bdnfs.fs.mounts import bind, top_mount
from bdnfs.session.control import connect
from bdnfs.session.daemons import DaemonEndedError, ShowEvent, ended, follow, start_daemon
from bdnfs.session.directories import give_back, make, show_views
from bdnfs.session.interrupts import uninterrupted
from bdnfs.session.keeper import kept
from bdnfs.session.options import Options
from bdnfs.session.parts import Part, close
from bdnfs.session.places import check_places
from bdnfs.session.records import (
    LOCATION_TIMEOUT_S,
    Mounted,
    MountRecord,
    RecordDirectory,
    location_locks,
    own_namespace,
    record_directories,
)
from bdnfs.session.unmounting import clear_dead, unbind, unmount_at
from bdnfs.spec.config import Config
from bdnfs.spec.secret import Secrets

_CAP_SYS_ADMIN = 21  # Linux: include/uapi/linux/capability.h


@dataclass(frozen=True)
class MountResult:
    """What a `mount` did.

    mounts:   in the spec's order
    fuse:     the locations a daemon still fills
    standing: the locations where it all stood already, by another call
    """

    mounts: tuple[Mounted, ...]
    fuse: tuple[str, ...]
    standing: tuple[str, ...]


def may_mount() -> bool:
    """Say whether this process may mount in its own namespace (CAP_SYS_ADMIN)."""
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next(line for line in file if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1)


def mount_parts(
    cache: NodeCache,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    mountpoint: str | None,
    show: Callable[[View], None],
) -> MountResult:
    """Mount every part; return when all is whole, or with `lazy` as soon as it can be read.

    Raises MountError where a location is in use or can't be mounted on; everything this call
    mounted is taken away again then.
    """
    if not all(part.tree for part in parts) and may_mount():
        from bdnfs.fs.connection import device_problem

        problem = device_problem()
        if problem:
            parts = _fill_first(cache, config, parts, options, secrets, problem, show)
            try:
                return mount_parts(cache, config, parts, options, secrets, mountpoint, show)
            finally:
                close(parts)
    check_places(cache.layout, [part.placed.location for part in parts])
    while True:
        undo = _Undo()
        try:
            return _mount_once(cache, config, parts, options, secrets, mountpoint, show, undo)
        except DaemonEndedError:
            # Another call's, which was interrupted, or unmounted by hand: now it is ours to mount.
            _take_back(cache, parts, undo)
        except BaseException:
            _take_back(cache, parts, undo)
            raise


def _fill_first(
    cache: NodeCache,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    problem: str,
    show: Callable[[View], None],
) -> Sequence[Part]:
    """Without FUSE nothing can be shown before it is whole: fill, as `run` does."""
    from bdnfs.session.filling import fill

    if options.lazy:
        raise MountError(
            f"--lazy shows files before they are here, and needs FUSE for that ({problem}); mount without --lazy, or "
            "pass the device into the container (`--device /dev/fuse`)"
        )
    note = f"{problem}; so everything is fetched first, and shows once it is whole"
    return fill(cache, config, parts, options, secrets, show, notes=[note])


def mount_and_view(
    cache: NodeCache,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    mountpoint: str | None,
    hf_cache: str | None,
    show: Callable[[View], None],
) -> MountResult:
    """Mount as mount_parts does, and show the Hub's repositories in the directory hf_cache (None: nowhere)."""
    if hf_cache is None:
        return mount_parts(cache, config, parts, options, secrets, mountpoint, show)
    from bdnfs.session.hub_view import check_free, plan_views

    views = plan_views(parts, hf_cache)
    check_free(cache.layout, views)  # before the first byte
    result = mount_parts(cache, config, parts, options, secrets, mountpoint, show)
    try:
        with location_locks(cache.layout, list(views), options.left_s(LOCATION_TIMEOUT_S)):
            show_views(cache.layout, views)
    except BaseException:
        for mounted in result.mounts:
            if mounted.location not in result.standing:
                unmount_at(cache.layout, mounted.location, force=True)
        raise
    return result


class _Undo(ExitStack):
    """How to take away what a call has mounted.

    begun: it has had the locks, so there may be something
    made:  the records of what it has mounted, once other calls can see them
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun = False
        self.made: list[RecordDirectory] = []


def _take_back(cache: NodeCache, parts: Sequence[Part], undo: _Undo) -> None:
    """Undo under the locks: whoever waits for our daemon mounts anew as soon as it is gone."""
    if not undo.begun:
        return  # not to be had in time before, nor would they be now
    with uninterrupted(), location_locks(cache.layout, [part.placed.location for part in parts]):
        if any(directory.is_shared() for directory in undo.made):
            undo.pop_all()  # another call has told its user that it stands
        undo.close()


def _mount_once(
    cache: NodeCache,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    mountpoint: str | None,
    show: ShowEvent,
    undo: _Undo,
) -> MountResult:
    """Mount every part; undo: how to take away what this mounted. Raises DaemonEndedError for another's."""
    until = "ready" if options.lazy else "whole"
    own: RecordDirectory | None = None
    locations = [part.placed.location for part in parts]
    with location_locks(cache.layout, locations, options.left_s(LOCATION_TIMEOUT_S)):
        undo.begun = True
        clear_dead(cache.layout)
        known = {part.placed.location: _standing(cache, part) for part in parts}
        todo = [part for part in parts if known[part.placed.location] is None]
        native = [part for part in todo if part.tree is not None]
        filling = [part for part in todo if part.tree is None]
        if todo and not may_mount():
            own = _mount_direct(cache, config, todo, options, secrets, mountpoint, undo)
        elif todo:
            if native:
                undo.made.append(_bind_native(cache, native, undo))
            if filling:
                own = _mount_fuse(cache, config, filling, options, secrets, show, undo)
        undo.made += [own] if own is not None else []
    # The locks are free now: another command may look at what stands, or wait for it too.
    if own is not None:
        try:
            follow(own, options.deadline_s, show, until=until)
        except DaemonEndedError as error:
            raise MountError(str(error)) from error
    for directory in {found for found in known.values() if isinstance(found, RecordDirectory)}:
        follow(directory, options.deadline_s, show, until=until)
    shared = [part for part in parts if known[part.placed.location] is not None]
    if shared:
        with location_locks(cache.layout, locations, options.left_s(LOCATION_TIMEOUT_S)):
            _share(cache, shared)
    return _result(cache, parts, filling if options.lazy else (), known)


def _share(cache: NodeCache, parts: Sequence[Part]) -> None:
    """Have what another call has mounted stay, though that call be interrupted yet.

    Raises DaemonEndedError where it has gone meanwhile.
    """
    for part in parts:
        if _standing(cache, part) is None:
            raise DaemonEndedError(f"{part.placed.location}: was taken away by the call that mounted it")
        for directory, _, _ in _recorded(cache, part.placed.location):
            directory.share()


def _result(
    cache: NodeCache,
    parts: Sequence[Part],
    filling: Sequence[Part],
    known: Mapping[str, RecordDirectory | str | None],
) -> MountResult:
    """Read back what stands: only the daemon knows what a listing made of a part's revision."""
    here = own_namespace()
    records = [record for directory in record_directories(cache.layout) if (record := directory.read())]
    at = {
        mounted.location: mounted
        for record in sorted(records, key=lambda record: record.namespace == here)
        for mounted in record.mounts
    }
    return MountResult(
        mounts=tuple(at.get(part.placed.location) or _mounted(part) for part in parts),
        fuse=tuple(part.placed.location for part in filling),
        standing=tuple(location for location, found in known.items() if found is not None),
    )


def _standing(cache: NodeCache, part: Part) -> RecordDirectory | str | None:
    """Say what shows this very part at its location already: "native", a daemon's record, or None.

    Raises MountError where another snapshot of ours stands there.
    """
    location = part.placed.location
    mount = top_mount(location)
    if mount is None or not ours(mount):
        return None
    for directory, record, mounted in _recorded(cache, location):
        if not _shows(cache, mounted, part):
            raise MountError(
                f"{location}: {_named(mounted)} is mounted there; "
                f"`bdnfs unmount {location}` first, or choose another directory"
            )
        return directory if record.kind == "fuse" and directory.is_served() else "native"
    if part.snapshot_id is not None and mount.root.endswith(f"/trees/{part.snapshot_id}"):
        return "native"
    raise MountError(f"{location}: another bdnfs mount is there; `bdnfs unmount {location}` first")


def _named(mounted: Mounted) -> str:
    named = mounted.source.endswith(f"@{mounted.revision}")
    return mounted.source if named else f"{mounted.source}@{short(mounted.revision)}"


def _shows(cache: NodeCache, mounted: Mounted, part: Part) -> bool:
    """Say whether what is mounted is this part: the same files of the same revision."""
    if part.snapshot_id is not None and part.snapshot_id == mounted.snapshot_id:
        return True
    record = cache.record(mounted.snapshot_id) if mounted.snapshot_id else None
    if record is None or record.selection != part.selection:
        return False
    return part.revision is None or part.revision == mounted.revision


def _recorded(cache: NodeCache, location: str) -> list[tuple[RecordDirectory, MountRecord, Mounted]]:
    """Return what the records say of exactly this location: in our mount namespace, or else in another."""
    found = [
        (directory, record, mounted)
        for directory in record_directories(cache.layout)
        if (record := directory.read()) is not None
        for mounted in record.mounts
        if mounted.location == location
    ]
    here = own_namespace()
    return [item for item in found if item[1].namespace == here] or found


def _mount_fuse(
    cache: NodeCache,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    show: ShowEvent,
    undo: ExitStack,
) -> RecordDirectory:
    """Start a daemon and bind the directories of its FUSE session to the locations."""
    daemon = start_daemon(cache.layout, config, parts, options, secrets, None, undo)
    try:
        follow(daemon, options.deadline_s, show, until="ready")
    except DaemonEndedError as error:
        raise MountError(str(error)) from error
    try:
        for index, part in enumerate(parts):
            bind(str(daemon.fuse / str(index)), part.placed.location)
    except MountError as error:
        if not daemon.is_served():
            raise MountError(str(ended(daemon, "its session is gone"))) from error
        raise
    reach("mount:shown")
    with connect(daemon.socket) as control:
        control.ask("bound").raise_error()
    return daemon


def _bind_native(cache: NodeCache, parts: Sequence[Part], undo: ExitStack) -> RecordDirectory:
    mounts = []
    with uninterrupted():
        directory = RecordDirectory.make(cache.layout)
        undo.callback(directory.remove)
        with kept(cache.layout, (part.snapshot_id for part in parts if part.snapshot_id)):
            for part in parts:
                undo.callback(give_back, cache.layout, part.placed.location)
                make(cache.layout, part.placed.location)
                bind(str(part.tree), part.placed.location)
                undo.callback(unbind, part.placed.location)
                reach("mount:native")
                mounts.append(_mounted(part))
            directory.write("native", tuple(mounts))
    return directory


def _mounted(part: Part) -> Mounted:
    return Mounted(
        part.placed.location,
        part.weights.source.text,
        part.revision or "",
        part.snapshot_id or "",
    )


def _mount_direct(
    cache: NodeCache,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    mountpoint: str | None,
    undo: ExitStack,
) -> RecordDirectory:
    """Without the right to bind: one FUSE session at MOUNTPOINT holds what lies below it."""
    locations = [part.placed.location for part in parts]
    top = mountpoint or (locations[0] if len(locations) == 1 else os.path.commonpath(locations))
    outside = [location for location in locations if os.path.commonpath([location, top]) != top]
    if outside or top == "/":
        raise MountError(
            f"{', '.join(outside or locations)}: this user may not bind mounts, and one FUSE mount can't hold them "
            "all; give a MOUNTPOINT of yours and --root, run as root, or use `bdnfs run` or `bdnfs stage`"
        )
    return start_daemon(cache.layout, config, parts, options, secrets, top, undo)
