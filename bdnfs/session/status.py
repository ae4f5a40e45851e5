"""`status`: what is mounted, by whom it is served, how far it is."""

import msgspec

from bdnfs.cache.layout import Layout
from bdnfs.core.errors import MountError
from bdnfs.fs.mountpoints import FUSE_FSTYPE
from bdnfs.fs.mounts import Mount
from bdnfs.fs.users import users_of
from bdnfs.session.control import Event, connect
from bdnfs.session.records import RecordDirectory, own_namespace, record_directories, standing


class MountStatus(msgspec.Struct, frozen=True):
    """One location.

    kind:  native or fuse
    state: whole; while a daemon serves it, that one's (resolving, ready, fetching, window, failed);
           "not answering"; gone, where somebody else unmounted it; elsewhere, where it was mounted in
           another mount namespace
    """

    location: str
    source: str
    revision: str
    kind: str
    state: str
    present_bytes: int | None = None
    total_bytes: int | None = None
    daemon_pid: int | None = None
    log: str | None = None
    error: str | None = None
    used_by: tuple[str, ...] = ()


def statuses(layout: Layout) -> list[MountStatus]:
    """Return the state of every mount that a record remembers, oldest first."""
    return [status for directory in record_directories(layout) for status in _statuses(directory)]


def _statuses(directory: RecordDirectory) -> list[MountStatus]:
    record = directory.read()
    if record is None:
        return []
    event = _event(directory) if directory.is_served() else None
    here = record.namespace in ("", own_namespace())
    found = []
    for mounted in record.mounts:
        mount = standing(mounted.location)
        native = mount is not None and mount.fstype != FUSE_FSTYPE
        state = "whole" if native else event.state if event else "not answering"
        found.append(
            MountStatus(
                location=mounted.location,
                source=mounted.source,
                revision=mounted.revision,
                kind="native" if native else "fuse",
                state=state if mount else "gone" if here else "elsewhere",
                present_bytes=event.present_bytes if event else None,
                total_bytes=event.total_bytes if event else None,
                daemon_pid=event.pid if event else None,
                log=str(directory.log) if directory.log.exists() else None,
                error=event.error if event else None,
                used_by=_users(mount, event),
            )
        )
    return found


def _users(mount: Mount | None, event: Event | None) -> tuple[str, ...]:
    """Name who uses the mount, or what was open on FUSE before the hand-off."""
    device = event.device if event else None
    but = frozenset({event.pid} if event else ())
    return tuple(users_of(mount, device=device or None, but=but)) if mount or device else ()


def _event(directory: RecordDirectory) -> Event | None:
    try:
        with connect(directory.socket) as control:
            return control.ask("status")
    except MountError:
        return None
