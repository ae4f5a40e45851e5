"""Names from upstream are hostile until they have passed here."""

from collections.abc import Iterable

from bdnfs.core.errors import UpstreamError

# Linux: include/uapi/linux/limits.h, NAME_MAX and PATH_MAX (less room for the mountpoint).
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 2048


def check_path(path: str, where: str) -> str:
    """Return path if it may stand in a tree; raise UpstreamError naming where and why if not."""
    reason = _objection(path)
    if reason:
        raise UpstreamError(
            f"{where}: upstream lists the name {_shown(path)}, which {reason}; "
            "nothing was fetched. Leave it out with ignore_patterns, or have it renamed upstream"
        )
    return path


def check_tree(paths: Iterable[str], where: str) -> None:
    """Raise UpstreamError where two paths collide: the same twice, or a file that is a directory."""
    files: set[str] = set()
    directories: set[str] = set()
    for path in paths:
        if path in files:
            raise UpstreamError(f"{where}: upstream lists {_shown(path)} twice; nothing was fetched")
        files.add(path)
        parent = path.rpartition("/")[0]
        while parent and parent not in directories:
            directories.add(parent)
            parent = parent.rpartition("/")[0]
    both = files & directories
    if both:
        raise UpstreamError(
            f"{where}: upstream lists {_shown(min(both))} both as a file and as a directory; "
            "nothing was fetched. Leave one of them out with ignore_patterns"
        )


def _objection(path: str) -> str | None:
    if path.startswith("/"):
        return "is absolute"
    if any(ord(char) < 32 or ord(char) == 127 for char in path):
        return "holds a control character"
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if len(encoded) > PATH_BYTES_MAX:
        return f"is longer than {PATH_BYTES_MAX} bytes"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return f"has {part!r} as a component"
        if len(part.encode()) > NAME_BYTES_MAX:
            return f"has a component longer than {NAME_BYTES_MAX} bytes"
    return None


def _shown(path: str) -> str:
    return repr(path if len(path) <= 120 else path[:100] + "…")
