"""The peers of a fill: who is a member, as this machine's own node says, and how each has behaved lately.

Everything here is one trio thread's; what blocks runs in worker threads. Nothing of it ever fails a fill.
"""

import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from bdnfs.cluster.access import open_access
from bdnfs.cluster.client import NodeStatus, PeerClient, local_client
from bdnfs.cluster.connections import CONNECT_S
from bdnfs.cluster.owners import Rendezvous
from bdnfs.core.errors import BdnfsError, CredentialsError, IntegrityError, UnavailableError
from bdnfs.spec.cluster import ClusterConfig

REFRESH_S = 2.0
_UNKNOWN_S = 0.25
# Who is away may be back in seconds; who sends wrong bytes, or refuses us, will in a minute be no better.
AWAY_S, AWAY_S_MAX, WRONG_S = 2.0, 30.0, 60.0
# Without a sign of life for so long a peer is dead; longer, once that was wrong.
SILENCE_S, SILENCE_S_MAX = 1.0, 4.0
# An overloaded peer's share goes to its next for so long at most.
_BUSY_S_MAX = 5.0
# How long anybody waits for the last report of a fill that is over.
_LAST_REPORT_S = 1.0
TICK_S = 0.25
# A process that gets no CPU in time has no business to say who is late.
_LATE_S, _LATE_COUNTS = 0.05, 0.25
_ANSWERS_KEPT = 64
_PINGED_MAX = 16
# One other that is away may well be; of two or more that are so at once nobody knows.
_CUT_MIN = 2
_log = logging.getLogger(__name__)


class Peer:
    """One member, as it is to be asked.

    own:     it is this machine's node
    is_away: it gave no answer, and has not been heard of since; died_s: from when on (trio's clock)
    pinging: it is being asked whether it is up
    """

    def __init__(self, name: str, client: PeerClient, *, own: bool) -> None:
        self.name, self.client, self.own = name, client, own
        self.is_away = self.pinging = False
        self.died_s = 0.0
        self._away = 0
        self._away_until_s = self._shunned_until_s = 0.0
        self._told: set[type[BdnfsError]] = set()

    @property
    def is_asked(self) -> bool:
        """Whether it is not to be avoided now."""
        return trio.current_time() >= self.avoided_until_s

    @property
    def avoided_until_s(self) -> float:
        return max(self._away_until_s, self._shunned_until_s)

    def answered(self) -> None:
        self._away, self.is_away, self._away_until_s = 0, False, 0.0

    def away(self) -> None:
        """It gave no answer: leave it alone, the longer the oftener."""
        if trio.current_time() < self._away_until_s:
            return  # what was asked before says nothing new
        self._away += 1
        self.is_away, self.died_s = True, trio.current_time()
        self._away_until_s = trio.current_time() + min(AWAY_S_MAX, AWAY_S * 2.0 ** (self._away - 1))
        _log.info("the peer %s is away", self.name)

    def failed(self, error: BdnfsError, warn: Callable[[str], None]) -> None:
        """Leave it alone, as its error says; warn hears of what somebody has to look at, once."""
        if isinstance(error, UnavailableError):
            if error.retry_after_s is None:
                self.away()
            else:
                self._shun(min(error.retry_after_s, _BUSY_S_MAX))
            return
        self._shun(WRONG_S)
        kind = type(error)
        if kind not in self._told:
            self._told.add(kind)
            also = ""
            if isinstance(error, IntegrityError):
                also = "; nothing of it was used. Is it another version, or broken?"
            warn(f"the peer {self.name} is not asked for {WRONG_S:.0f} s: {error}{also}")

    def _shun(self, for_s: float) -> None:
        self._shunned_until_s = max(self._shunned_until_s, trio.current_time() + for_s)


class Watched(Protocol):
    """What is looked at now and then."""

    def tick(self, counts_s: float, /) -> None:
        """Look at it. counts_s: seconds that count as gone by since the last time."""


class Peers:
    """The members, and what they did. Open it with `open_peers`.

    ranking:   of those that own chunks; it changes with them
    silence_s: how long a peer may give no sign of life until it is taken for dead
    watched:   what ticks
    """

    def __init__(self, config: ClusterConfig, warn: Callable[[str], None]) -> None:
        self._access = open_access(config)
        self._local = local_client(config, self._access)
        self.warn = warn
        self.ranking = Rendezvous(())
        self.members: dict[str, Peer] = {}
        self.silence_s = SILENCE_S
        self.watched: set[Watched] = set()
        self._pings: trio.Nursery | None = None
        self._back = trio.Event()
        self._known: NodeStatus | None = None
        self._warned = False
        self._answers_s: deque[float] = deque(maxlen=_ANSWERS_KEPT)
        self._told: dict[str, int] = {}

    @property
    def any(self) -> bool:
        """Whether there is anybody to ask."""
        return bool(self.members)

    def answered(self, peer: Peer, took_s: float) -> None:
        peer.answered()
        self._answers_s.append(took_s)

    @property
    def usual_s(self) -> float:
        """How long nearly all recent answers took at most (the 95th percentile); 0 before there was one."""
        recent = sorted(self._answers_s)
        return recent[int(0.95 * (len(recent) - 1))] if recent else 0.0

    async def refresh(self) -> None:
        """Ask the local node who is a member; without an answer those last known go on."""
        try:
            status = await trio.to_thread.run_sync(self._local.status, abandon_on_cancel=True)
        except BdnfsError as error:
            if self._known is None and not self._warned:
                self._warned = True
                self.warn(_alone(error))
            return
        if status != self._known:
            self._known = status
            self._take(status)

    async def keep(self, tier_bytes: Mapping[str, int]) -> None:
        """Ask again every few seconds, until cancelled, and tell the local node what was fetched meanwhile.

        tier_bytes: the fill's counters, by tier
        """
        try:
            async with trio.open_nursery() as self._pings:
                self._pings.start_soon(self._tick)
                while True:
                    # A node that was too busy to answer the first time is not to cost seconds of the mirror.
                    await trio.sleep(REFRESH_S if self._known is not None else _UNKNOWN_S)
                    for peer in self._away()[:_PINGED_MAX]:
                        self.ping(peer)
                    await self.refresh()
                    await self._tell(tier_bytes)
        finally:
            self._pings = None
            with trio.move_on_after(_LAST_REPORT_S, shield=True):
                await self._tell(tier_bytes)

    async def _tick(self) -> None:
        """Let what is watched look at itself, as long as anything is."""
        while True:
            due_s = trio.current_time() + TICK_S
            await trio.sleep_until(due_s)
            on_time = trio.current_time() < due_s + _LATE_S
            for each in tuple(self.watched):
                each.tick(TICK_S if on_time else TICK_S * _LATE_COUNTS)

    def ping(self, peer: Peer) -> None:
        """Have a silent peer asked whether it is up: what it answers is a sign of life."""
        if self._pings is not None and not peer.pinging:
            peer.pinging = True
            self._pings.start_soon(self._ping, peer)

    async def reachable(self) -> None:
        """Where all others are away the fault may be this machine's: wait a moment for any of them.

        As its line comes back they are to be asked at once, or all that is missing would be asked of the mirror.
        """
        away = self._away()
        others = [peer for peer in self.members.values() if not peer.own]
        if len(away) < len(others) or len(others) < _CUT_MIN:
            return
        for peer in away[:_PINGED_MAX]:
            self.ping(peer)
        with trio.move_on_after(CONNECT_S):
            await self._back.wait()

    def _away(self) -> list[Peer]:
        """Return those of the others that are away, in any order."""
        away = [peer for peer in self.members.values() if peer.is_away and not peer.own]
        random.shuffle(away)
        return away

    async def _ping(self, peer: Peer) -> None:
        try:
            is_up = await trio.to_thread.run_sync(peer.client.is_up, abandon_on_cancel=True)
        finally:
            peer.pinging = False
        if is_up and peer.is_away:
            _log.info("the peer %s is up", peer.name)
            if trio.current_time() < peer.died_s + SILENCE_S_MAX:
                # It was not dead: there is too much to do, here or there. To take more for dead would only add to it.
                self.silence_s = min(SILENCE_S_MAX, 2 * self.silence_s)
            peer.answered()
            self._back.set()
            self._back = trio.Event()

    async def _tell(self, tier_bytes: Mapping[str, int]) -> None:
        now = dict(tier_bytes)
        fresh = {tier: size - self._told.get(tier, 0) for tier, size in now.items()}
        if self._known is None or not any(fresh.values()):
            return
        told, self._told = self._told, now  # also where this is cancelled: it is on its way
        try:
            await trio.to_thread.run_sync(self._local.report, fresh, abandon_on_cancel=True)
        except BdnfsError:
            self._told = told  # the next time

    def close(self) -> None:
        for peer in self.members.values():
            peer.client.close()
        self._local.close()

    def _take(self, status: NodeStatus) -> None:
        before, self.members = self.members, {}
        for member in status.members:
            if member.share_bytes == 0:
                continue
            own = member.name == status.name
            known = before.pop(member.name, None)
            if known is not None and known.own == own and (own or known.client.address == member.address):
                self.members[member.name] = known
                continue
            client = PeerClient(member.address, self._access, status.name) if not own else self._own(status)
            self.members[member.name] = Peer(member.name, client, own=own)
        for gone in before.values():
            gone.client.close()
        if self.ranking.names != tuple(sorted(self.members)):
            self.ranking = Rendezvous(self.members)

    def _own(self, status: NodeStatus) -> PeerClient:
        self._local.name(status.name)
        return self._local


@asynccontextmanager
async def open_peers(config: ClusterConfig, warn: Callable[[str], None]) -> AsyncIterator[Peers]:
    """Yield the peers as this machine's node names them; `Peers.keep` keeps them up to date.

    Without a node here there is nobody to ask, one warning, and another try every few seconds. Raises
    CredentialsError or SpecError for a token or certificates that can't be read.
    """
    peers = Peers(config, warn)
    try:
        await peers.refresh()
        yield peers
    finally:
        peers.close()


def _alone(error: BdnfsError) -> str:
    what = "the cluster's node of this machine can't be asked"
    next_step = "" if isinstance(error, CredentialsError) else "start `bdnfs node` here; "
    return f"{what} ({error}); {next_step}going on with the mirror alone"
