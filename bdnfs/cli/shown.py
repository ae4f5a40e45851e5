"""What `status` shows people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from bdnfs.core.units import format_size, short
from bdnfs.session.status import MountStatus

if TYPE_CHECKING:  # a node without a cluster needs none of it
    from bdnfs.session.cluster_status import ClusterStatus, MemberStatus

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


def cluster_lines(cluster: "ClusterStatus") -> Iterator[str]:
    """Yield a line for the cluster, and a paragraph for each member."""
    up = sum(member.facts is not None for member in cluster.members)
    yield f"cluster: {cluster.name}, {len(cluster.members)} members, {up} of them answer"
    if cluster.error:
        yield f"    error: {cluster.error}"
    for member in cluster.members:
        yield from _member_lines(member)


def _member_lines(member: "MemberStatus") -> Iterator[str]:
    facts = member.facts
    here = " (this machine)" if member.here else ""
    if facts is None:
        yield f"  {member.name}{here}  {member.error}"
        return
    share, serving = facts.share, facts.serving
    rate = f" at {format_size(serving.rate_bytes_s)}/s" if serving.rate_bytes_s else ""
    yield f"  {member.name}{here}  {serving.state}{rate}{', through nginx' if serving.nginx else ''}"
    hits = "" if serving.hit_rate is None else f", hit rate {100 * serving.hit_rate:.1f} %"
    yield (
        f"    share {format_size(share.used_bytes)} of {format_size(share.cap_bytes)}, {share.chunks} chunks{hits}"
    )
    yield f"    sent {_by_tier(serving.bytes)}"
    yield f"    filled here {_by_tier(facts.tiers)}"


def _by_tier(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{format_size(size)} from {tier}" for tier, size in sorted(sizes.items())) or "nothing"
