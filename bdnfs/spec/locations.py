"""Where a source appears: mount_locations as written, and where they end up."""

import posixpath

import msgspec

from bdnfs.core.errors import SpecError
from bdnfs.spec.fields import shown, unprintable
from bdnfs.spec.weights import Spec, Weights

# Linux: include/uapi/linux/limits.h
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 4095
# The kernel's own filesystems: nothing can be made in them, and what covers them breaks the machine.
_KERNEL_TREES = ("/proc", "/sys", "/dev")


class Placed(msgspec.Struct, frozen=True):
    """Where one source is mounted.

    location: absolute and normalised
    outside:  a MOUNTPOINT was given and location is not below it
    """

    weights: Weights
    location: str
    outside: bool


def check_location(path: str, where: str) -> str:
    """Return the mount_location path, normalised; raise SpecError naming where and why if it can't be one."""
    reason = unprintable(path) or _objection(path)
    if reason:
        raise SpecError(f"{where}: mount_location {shown(path)} {reason}")
    return _normalised(path)


def check_apart(locations: list[tuple[str, str]], where: str) -> None:
    """Raise SpecError if two of the locations, each (path, whose it is), are equal or nested."""
    seen: dict[str, str] = {}
    for path, owner in sorted(locations):
        if path in seen:
            raise SpecError(
                f"{where}: mount_location {shown(path)} is there twice, for {seen[path]} and {owner}; "
                "give each source its own directory"
            )
        # Ancestors sort before what lies in them, so they have been seen.
        for parent in _ancestors(path):
            if parent in seen:
                raise SpecError(
                    f"{where}: mount_location {shown(path)} ({owner}) lies inside {shown(parent)} "
                    f"({seen[parent]}); give each source its own directory"
                )
        seen[path] = owner


def absolute(path: str, cwd: str | None, what: str) -> str:
    """Return path normalised and absolute against cwd; raise SpecError (`what` names it) if that can't be."""
    reason = unprintable(path) or ("is empty" if not path else None)
    if reason:
        raise SpecError(f"{what} {shown(path)} {reason}; name a directory")
    if not path.startswith("/"):
        if cwd is None or not cwd.startswith("/"):
            raise SpecError(f"{what} {shown(path)} is relative; write it from '/' on")
        path = posixpath.join(cwd, path)
    return _normalised(posixpath.normpath(path))


def place(
    spec: Spec, mountpoint: str | None, root: str | None, *, cwd: str | None = None
) -> tuple[Placed, ...]:
    """Return where each source of spec is mounted, in the spec's order.

    Absolute mount_locations stay as they are, relative ones go below mountpoint; with root all of
    them, and mountpoint itself unless it is inside root already, go below root. Raises SpecError for
    a relative location with neither given, and for locations that are equal or nested once placed.
    """
    top = absolute(root, cwd, "--root") if root is not None else None
    point = absolute(mountpoint, cwd, "MOUNTPOINT") if mountpoint is not None else None
    inner = _below_root(point, top) if point is not None else None
    where = spec.path or "command line"
    placed = []
    for weights in spec.weights:
        wanted = weights.mount_location
        if wanted == point:
            wanted = inner or "/"
        elif not wanted.startswith("/"):
            if point is None and top is None:
                raise SpecError(_needs_mountpoint(weights, where))
            wanted = _normalised(posixpath.join(inner or "/", wanted))
        location = _normalised(top + wanted) if top else wanted
        outside = inner is not None and not _is_within(wanted, inner)
        placed.append(Placed(weights, check_location(location, where), outside))
    check_apart([(each.location, each.weights.source.text) for each in placed], where)
    return tuple(placed)


def _needs_mountpoint(weights: Weights, where: str) -> str:
    if weights.mount_location == ".":
        return f"{weights.source.text}: nowhere to appear; give a MOUNTPOINT after it"
    return (
        f"{where}: mount_location {shown(weights.mount_location)} is relative; give MOUNTPOINT or --root, "
        "or write it from '/' on"
    )


def _below_root(point: str, top: str | None) -> str:
    if top is None or top == "/" or not _is_within(point, top):
        return point
    return point[len(top) :] or "/"


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _normalised(path: str) -> str:
    # normpath keeps two leading slashes, as POSIX allows.
    path = posixpath.normpath(path)
    return path[1:] if path.startswith("//") else path


def _ancestors(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _objection(path: str) -> str | None:
    if not path.strip():
        return "is empty; write the directory where the files are to appear"
    if path.startswith("~"):
        return "starts with '~', which is not expanded here; write the path out"
    if ".." in path.split("/"):
        return "holds '..'; write the path out"
    normal = _normalised(path)
    if normal == "/":
        return "is the root directory; name a directory below it"
    if any(_is_within(normal, tree) for tree in _KERNEL_TREES):
        return f"lies in one of the kernel's own trees ({', '.join(_KERNEL_TREES)}); name another directory"
    if len(normal.encode()) > PATH_BYTES_MAX:
        return f"is longer than {PATH_BYTES_MAX} bytes"
    if any(len(part.encode()) > NAME_BYTES_MAX for part in normal.split("/")):
        return f"has a component longer than {NAME_BYTES_MAX} bytes"
    return None
