"""One chunk asked of one peer after another, or beside another, until one of them gives it.

Who gives no sign of life for a second is dead, and the next is asked in its place. Who is merely slow, as all are on
a line that is full, is not: to ask twice would fill the line with the same bytes. So a sign of life is any byte from
that peer, of whatever chunk, or its answer to whether it is up. Only who is up and hangs on just this chunk is left
to it while another is asked beside it.

Time is counted in ticks. Those that come late count for little: a process that was stopped, or gets no CPU in time,
must not take all its peers for dead; on a machine that is overloaded they have as little.
"""

import logging
import time
from collections.abc import Iterator

import trio

from bdnfs.cluster.client import Ask, ChunkName, Served
from bdnfs.cluster.peers import Peer, Peers
from bdnfs.core.errors import BdnfsError, UnavailableError
from bdnfs.tiers.origin import MIRROR, PEER

PEERS_MAX = 3
TICK_S = 0.25
_LATE_S, _LATE_COUNTS = 0.05, 0.25
# So long without a sign of life, and it is asked whether it is up.
_PING_S = 0.5
# Nothing of this chunk for so long, and for so many times what is usual: it hangs on it.
HANGS_S, _HANGS_TIMES = 5.0, 3.0
# Fewer bytes than this in this time are a trickle: what it would bring takes hours.
_FLOOR_BYTES, _FLOOR_S = 16 * 1024, 30.0
_log = logging.getLogger(__name__)


class _Running:
    """A question under way, and what could be seen of it, tick by tick."""

    def __init__(self, peer: Peer, ask: Ask, buffer: memoryview) -> None:
        self.peer, self.ask, self.buffer = peer, ask, buffer
        self.began_s = time.monotonic()
        self.silent_s = self.still_s = self._floor_s = 0.0
        self.given_up = False  # what it still says is no news
        self.passed_over = False  # it hangs, and another was asked beside it
        self.pinged = False
        self._peer_heard_s, self._heard_s = peer.client.heard_s, ask.heard_s
        self._floor_bytes = 0

    def tick(self, counts_s: float) -> None:
        """Count a tick, against the peer and against this question where nothing has come since the last."""
        heard_s = self.peer.client.heard_s
        if heard_s != self._peer_heard_s:
            self._peer_heard_s, self.silent_s, self.pinged = heard_s, 0.0, False
        else:
            self.silent_s += counts_s
        heard_s = self.ask.heard_s
        self.still_s = self.still_s + counts_s if heard_s == self._heard_s else 0.0
        self._heard_s = heard_s
        self._floor_s += counts_s

    def trickles(self) -> bool:
        """Say, now and then, whether too little has come since this was asked last."""
        if self._floor_s < _FLOOR_S:
            return False
        came_bytes = self.ask.got_bytes - self._floor_bytes
        self._floor_s, self._floor_bytes = 0.0, self.ask.got_bytes
        return came_bytes < _FLOOR_BYTES

    def give_up(self) -> None:
        """End it; its thread comes back soon."""
        self.given_up = True
        self.ask.abort()


class Asking:
    """The questions for one chunk: at most PEERS_MAX, each to another peer."""

    def __init__(
        self,
        name: ChunkName,
        order: Iterator[Peer],
        into: memoryview,
        peers: Peers,
        threads: trio.CapacityLimiter,
    ) -> None:
        """order: whom to ask, one after the other; threads: what runs at once, of all chunks."""
        self._name, self._order, self._into = name, order, into
        self._peers, self._threads = peers, threads
        self._running: list[_Running] = []
        self._asked = 0
        self._into_used = False  # a thread may write to it
        self._won: tuple[_Running, Served] | None = None
        self._is_missing = False  # its owner knows that the mirror has none
        self._moved = trio.Event()
        self._counts_s = TICK_S  # of the last tick

    async def run(self) -> str | None:
        """Fill `into`; return the tier that it came from, None where nobody gives the chunk."""
        async with trio.open_nursery() as nursery:
            self._ask_next(nursery)
            while self._running and self._won is None and not self._is_missing:
                if not await self._something_moved():
                    self._tick()
                if self._won is None and not self._is_missing and not self._waits_for_one():
                    self._ask_next(nursery)
            self._end()
            while self._into_used:  # whoever is asked next fills it
                await self._something_moved()
            nursery.cancel_scope.cancel()
        if self._won is None:
            return None
        winner, served = self._won
        if winner.buffer is not self._into:
            self._into[:] = winner.buffer
        # What our own node had to bring from the mirror is no peer's.
        return MIRROR if winner.peer.own and served == "mirror" else PEER

    async def _something_moved(self) -> bool:
        """Return True once a question has ended; False after a tick."""
        moved, due_s = self._moved, trio.current_time() + TICK_S
        with trio.move_on_at(due_s):
            await moved.wait()
        if moved.is_set():
            self._moved = trio.Event()
        else:
            self._counts_s = TICK_S if trio.current_time() < due_s + _LATE_S else TICK_S * _LATE_COUNTS
        return moved.is_set()

    def _waits_for_one(self) -> bool:
        return any(not (running.given_up or running.passed_over) for running in self._running)

    def _ask_next(self, nursery: trio.Nursery) -> None:
        """Ask the next peer in order, if there is one."""
        peer = next(self._order, None) if self._asked < PEERS_MAX else None
        if peer is None:
            return
        self._asked += 1
        buffer = self._into if not self._into_used else memoryview(bytearray(len(self._into)))
        self._into_used = self._into_used or buffer is self._into
        running = _Running(peer, peer.client.asking(self._name, buffer), buffer)
        self._running.append(running)
        nursery.start_soon(self._ask, running)

    async def _ask(self, running: _Running) -> None:
        try:
            served = await trio.to_thread.run_sync(
                running.ask.run, abandon_on_cancel=True, limiter=self._threads
            )
        except trio.Cancelled:
            running.give_up()
            raise
        except BdnfsError as error:
            if not running.given_up:
                running.peer.failed(error, self._peers.warn)
        else:
            if served is None:
                self._is_missing = True
            elif self._won is None:
                self._won = running, served
                self._peers.answered(running.peer, time.monotonic() - running.began_s)
        finally:
            self._running.remove(running)
            if running.buffer is self._into:
                self._into_used = False
            self._moved.set()

    def _tick(self) -> None:
        """Look at what is under way: who is dead, who trickles, who hangs."""
        hangs_s = max(HANGS_S, _HANGS_TIMES * self._peers.usual_s)
        for running in self._running:
            if running.given_up:
                continue
            running.tick(self._counts_s)
            if running.silent_s >= _PING_S and not running.pinged:
                running.pinged = True
                self._peers.ping(running.peer)
            if running.silent_s >= self._peers.silence_s:
                _log.info("the peer %s gives no sign of life", running.peer.name)
                running.peer.away()
                running.give_up()
            elif running.trickles():
                _log.info("the peer %s sends a trickle", running.peer.name)
                running.peer.failed(UnavailableError("a trickle"), self._peers.warn)
                running.give_up()
            elif running.still_s >= hangs_s:
                if not running.passed_over:
                    _log.info("the peer %s hangs on chunk %s", running.peer.name, self._name.digest[:12])
                running.passed_over = True

    def _end(self) -> None:
        for running in self._running:
            running.give_up()
