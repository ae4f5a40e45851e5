"""What `status` shows people."""

from collections.abc import Iterator, Sequence

from bdnfs.core.units import format_size, short
from bdnfs.session.status import MountStatus

_USERS_SHOWN = 5
_SAID = {
    "resolving": "asking upstream",
    "window": "fetches what is read (--no-fill)",
    "not answering": "its daemon does not answer",
    "gone": "unmounted by somebody else",
}


def status_lines(found: Sequence[MountStatus], present_bytes: int, directory: str) -> Iterator[str]:
    """Yield a paragraph for each location, and a line for the cache."""
    if not found:
        yield "nothing is mounted"
    for item in found:
        yield f"{item.location}  {_state(item)}"
        yield f"    {item.source} at {short(item.revision)}"
        if item.error:
            yield f"    error: {item.error}"
        if item.used_by:
            more = len(item.used_by) - _USERS_SHOWN
            yield f"    used by {', '.join(item.used_by[:_USERS_SHOWN])}{f' and {more} more' if more > 0 else ''}"
        if item.log:
            daemon = f"daemon {item.daemon_pid}, " if item.daemon_pid else ""
            yield f"    {daemon}log {item.log}"
    yield f"cache: {directory}, {format_size(present_bytes)} present"


def _state(item: MountStatus) -> str:
    said = _SAID.get(item.state, item.state)
    if item.state in ("fetching", "failed") and item.total_bytes:
        present = item.present_bytes or 0
        share = 100 * present // item.total_bytes
        said += f", {share} % ({format_size(present)} of {format_size(item.total_bytes)})"
    return f"{said}, {'native' if item.kind == 'native' else 'through FUSE'}"
