"""Directories made to mount on: remembered beside the records until the last mount there is gone.

`mounts/<hash of the location>.made` says which they are. To remove a directory that is mounted on in
another namespace (a `run` of another rank) would take that mount away, so whoever ends looks at all
of them first, under the location's lock; whoever mounts holds that lock until its mount shows.
A container can't see them all: there the last PID namespace that mounted at a location removes it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bdnfs.cache.layout import Layout, read_file
from bdnfs.cache.locks import lock_until, open_lock_file, try_lock, who_holds
from bdnfs.core.errors import UNREADABLE, DeadlineError
from bdnfs.core.steps import reach
from bdnfs.fs.mountpoints import FUSE_FSTYPE, absent, prepare, restore
from bdnfs.fs.mounts import Mount, mount_table, sees_every_process
from bdnfs.session.interrupts import uninterrupted
from bdnfs.session.records import AbsolutePath, location_file, standing

if TYPE_CHECKING:
    from bdnfs.session.hub_view import View

_REGISTRY_TIMEOUT_S = 30.0


class MadeDirectories(msgspec.Struct, frozen=True):
    """What was made for a location, parents first, and the PID namespaces from which it is in use."""

    location: AbsolutePath
    made: tuple[AbsolutePath, ...]
    users: tuple[str, ...] = ()


def make(layout: Layout, location: str) -> None:
    """Make location an empty directory to mount on, and remember what had to be made for it.

    Remembered first: whoever is killed in between leaves nothing that nobody knows of.
    Raises MountError as prepare does. The caller holds the location's lock.
    """
    with uninterrupted(), _registry(layout):
        before = _made_for(layout, location)
        users = {*before.users, _own_processes()}
        _remember(layout, location, {*before.made, *absent(location)}, users)
        made: list[str] = []
        try:
            made = prepare(location)
        finally:
            _remember(layout, location, {*before.made, *made}, users)
        reach("mount:made")


def give_back(layout: Layout, location: str) -> None:
    """Remove what was made for location, unless something is still mounted there, wherever that shows.

    What other locations lie in by now is theirs to remove. The caller holds the location's lock.
    """
    with _registry(layout):
        for path, known in _known(layout):
            if not is_below(location, known.location) or _is_mounted(known.location):
                continue
            others = _elsewhere(known.users)
            if others:
                _remember(layout, known.location, {*known.made}, others)
                continue
            restore(list(known.made))
            path.unlink(missing_ok=True)
            for _, heir in _known(layout):
                theirs = {made for made in known.made if is_below(heir.location, made)}
                _remember(layout, heir.location, theirs | set(heir.made), {*heir.users})
        if _has_views(layout):
            from bdnfs.session.hub_view import take_back_views

            take_back_views(layout, location, _is_shown, _elsewhere)


def show_views(layout: Layout, views: "Mapping[str, View]") -> None:
    """Make the Hub-cache-shaped views of what is mounted at these locations, or will be at once.

    They go as the directories do. Raises MountError as check_free and make_view do. The caller holds
    the locations' locks.
    """
    from bdnfs.session.hub_view import check_free, make_view

    with uninterrupted(), _registry(layout):
        check_free(layout, views)
        for location, view in views.items():
            make_view(layout, location, view, _own_processes())


def sweep(layout: Layout) -> None:
    """Give back what was made for locations where nothing is mounted, by commands that were killed."""
    locations = {known.location for _, known in _known(layout)}
    if _has_views(layout):
        from bdnfs.session.hub_view import viewed

        locations.update(viewed(layout))
    for location in locations:
        if standing(location) is not None:
            continue
        fd = open_lock_file(location_file(layout, location, "lock"))
        try:
            if try_lock(fd, exclusive=True):
                give_back(layout, location)
        finally:
            os.close(fd)


def _has_views(layout: Layout) -> bool:
    """Say whether there is any view: few have one, and a hit then need not load what knows about them."""
    return any(name.endswith(".hub") for name in os.listdir(layout.mounts))


def _known(layout: Layout) -> Iterator[tuple[Path, MadeDirectories]]:
    for path in sorted(layout.mounts.glob("*.made")):
        with contextlib.suppress(OSError, *UNREADABLE):
            yield path, msgspec.json.decode(read_file(path), type=MadeDirectories)


def _own_processes() -> str:
    return os.readlink("/proc/self/ns/pid")


def _elsewhere(users: Iterable[str]) -> set[str]:
    """Return those of the PID namespaces whose mounts can't be seen from here."""
    return set() if sees_every_process() else {*users} - {_own_processes()}


def _made_for(layout: Layout, location: str) -> MadeDirectories:
    try:
        content = read_file(location_file(layout, location, "made"))
        return msgspec.json.decode(content, type=MadeDirectories)
    except (OSError, *UNREADABLE):
        return MadeDirectories(location, ())


def _remember(layout: Layout, location: str, made: set[str], users: set[str]) -> None:
    """Let the file say exactly this."""
    known = MadeDirectories(location, tuple(sorted(made)), tuple(sorted(users)))
    if known == _made_for(layout, location):
        return
    path = location_file(layout, location, "made")
    if not made:
        path.unlink(missing_ok=True)
        return
    draft = layout.mounts / ".made"  # the registry's lock is held: nobody else writes one
    draft.unlink(missing_ok=True)  # what was planted there is not written through
    draft.write_bytes(msgspec.json.encode(known))
    draft.rename(path)


@contextlib.contextmanager
def _registry(layout: Layout) -> Iterator[None]:
    """Hold what keeps two commands from changing these files at once; nothing waits inside."""
    path = layout.mounts / "made.lock"
    fd = open_lock_file(path)
    try:
        if not lock_until(fd, exclusive=True, deadline_s=time.monotonic() + _REGISTRY_TIMEOUT_S):
            who = who_holds(path)
            raise DeadlineError(
                f"{path}: another command has held this for {_REGISTRY_TIMEOUT_S:.0f} s; one of these: {who}. "
                "Is it stopped? Continue or end it, then try again"
            )
        yield
    finally:
        os.close(fd)


def _is_mounted(location: str) -> bool:
    """Say whether location is a mountpoint in any mount namespace that can be read from here."""
    return _any_mount(lambda mount: mount.mountpoint == location)


def _is_shown(location: str) -> bool:
    """Say the same, also of one FUSE session that holds several locations."""
    return _any_mount(
        lambda mount: (
            mount.mountpoint == location
            or (mount.fstype == FUSE_FSTYPE and is_below(location, mount.mountpoint))
        )
    )


def _any_mount(fits: Callable[[Mount], bool]) -> bool:
    seen = set()
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(fits(mount) for mount in mount_table(pid)):
                return True
        except OSError:
            continue  # it ended, or is another user's
    return False


def is_below(path: str, directory: str) -> bool:
    """Say whether path is directory, or lies in it; both absolute and normalised."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
