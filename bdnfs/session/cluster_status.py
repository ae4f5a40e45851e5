"""`status` in a cluster: every member as its node tells it, asked directly, all at once and not for long."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait

import msgspec

from bdnfs.cluster.access import Access, local_address, open_access
from bdnfs.cluster.client import NodeMember, PeerClient, local_client
from bdnfs.core.errors import UNREADABLE, BdnfsError, UpstreamError
from bdnfs.fs.machine import Finding
from bdnfs.serve.node.nginx import find_nginx
from bdnfs.spec.cluster import ClusterConfig

_ASKED_AT_ONCE = 32
_ANSWER_S, _ALL_S = 2.0, 10.0
_BYTES_MAX = 4 << 20


class Share(msgspec.Struct, frozen=True):
    cap_bytes: int = 0
    used_bytes: int = 0
    chunks: int = 0


class Serving(msgspec.Struct, frozen=True):
    """What a node sends.

    state:         open, throttled or paused
    chunks, bytes: sent, by the tier they came from there
    hit_rate:      which part of them was there already
    """

    state: str = ""
    rate_bytes_s: int | None = None
    nginx: bool = False
    chunks: dict[str, int] = {}
    bytes: dict[str, int] = {}
    refused: dict[str, int] = {}
    hit_rate: float | None = None
    flights: int = 0


class NodeFacts(msgspec.Struct, frozen=True):
    """What GET /v1/node says. tiers: bytes that this machine's own fills got, by tier."""

    name: str
    cluster: str = ""
    incarnation: str = ""
    version: int = 0
    members: tuple[NodeMember, ...] = ()
    share: Share = Share()
    serving: Serving = Serving()
    tiers: dict[str, int] = {}


class MemberStatus(msgspec.Struct, frozen=True):
    """One member. error: why it says nothing, None: it does; here: it is this machine's own node."""

    name: str
    address: str
    here: bool
    facts: NodeFacts | None = None
    error: str | None = None


class ClusterStatus(msgspec.Struct, frozen=True):
    """The cluster as this machine sees it. error: why its own node says nothing, None: it does."""

    name: str
    members: tuple[MemberStatus, ...]
    error: str | None = None


def cluster_status(config: ClusterConfig) -> ClusterStatus:
    """Ask this machine's node who is a member, and each of them how it is. Takes ten seconds at most."""
    try:
        access = open_access(config)
    except BdnfsError as error:
        return ClusterStatus(config.name, (), str(error))
    own, wrong = None, None
    try:
        own = _facts(local_client(config, access))
    except BdnfsError as error:
        wrong = f"no node answers at {local_address(config)} ({error}); is `bdnfs node` running?"
    members = own.members if own else tuple(NodeMember(each, each) for each in config.members)
    return ClusterStatus(config.name, tuple(_all(members, own, access)), wrong)


def findings(config: ClusterConfig) -> list[Finding]:
    """Return what a node of this cluster needs of this machine, for `doctor`."""
    nginx, status = find_nginx(), cluster_status(config)
    up = sum(member.facts is not None for member in status.members)
    return [
        Finding(
            "nginx",
            nginx is not None,
            f"{nginx}, sends chunks"
            if nginx
            else "not installed: `bdnfs node` sends chunks itself, at more CPU",
            "apt-get install nginx-light",
        ),
        Finding(
            "cluster",
            status.error is None,
            status.error or f"{status.name}: {up} of {len(status.members)} members answer",
            "run `bdnfs node` on this machine",
        ),
    ]


def _all(members: Iterable[NodeMember], own: NodeFacts | None, access: Access) -> Iterable[MemberStatus]:
    asked = sorted(members, key=lambda member: member.name)
    pool = ThreadPoolExecutor(_ASKED_AT_ONCE)
    answers = {
        each.name: pool.submit(_facts, PeerClient(each.address, access))
        for each in asked
        if own is None or each.name != own.name
    }
    wait(answers.values(), _ALL_S)
    pool.shutdown(wait=False, cancel_futures=True)
    for each in asked:
        if own is not None and each.name == own.name:
            yield MemberStatus(each.name, each.address, True, own)
            continue
        answer = answers[each.name]
        facts, error = None, "no answer in time"
        if answer.done() and not answer.cancelled():
            try:
                facts, error = answer.result(), ""
            except BdnfsError as wrong:
                error = str(wrong)
        yield MemberStatus(each.name, each.address, False, facts, error or None)


def _facts(client: PeerClient) -> NodeFacts:
    doing = f"asking {client.address} how it is"
    try:
        with client.exchange(doing, _ANSWER_S) as exchange:
            response = exchange.send("GET", "/v1/node", {})
            found = response.read(_BYTES_MAX) if response.status == 200 else b""
            status = response.status
    finally:
        client.close()
    if status != 200:
        raise UpstreamError(f"{doing}: it answered {status}")
    try:
        return msgspec.json.decode(found, type=NodeFacts)
    except UNREADABLE:
        raise UpstreamError(f"{doing}: the answer can't be read; is it a bdnfs node?") from None
