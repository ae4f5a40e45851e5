"""One chunk asked of one peer after another, or beside another, until one of them gives it.

Who gives no sign of life for a second is dead, and the next is asked in its place. Who is merely slow, as all are on
a line that is full, is not: to ask twice would fill the line with the same bytes. So a sign of life is any byte from
that peer, of whatever chunk, or its answer to whether it is up. Only who is up and hangs on just this chunk is left
to it while another is asked beside it.

Time is counted in ticks, for a process that was stopped itself must not take all its peers for dead.
"""

import time
from collections.abc import Iterator

import trio

from bdnfs.cluster.client import Ask, ChunkName, Served
from bdnfs.cluster.peers import Peer, Peers
from bdnfs.core.errors import BdnfsError, UnavailableError
from bdnfs.tiers.origin import MIRROR, PEER

PEERS_MAX = 3
TICK_S = 0.25
# So many ticks without a sign of life, and it is asked whether it is up.
_PING_TICKS = 2
# Nothing of this chunk for so long, and for so many times what is usual: it hangs on it.
HANGS_S, _HANGS_TIMES = 5.0, 3.0
# Fewer bytes than this in this time are a trickle: what it would bring takes hours.
_FLOOR_BYTES, _FLOOR_TICKS = 16 * 1024, round(30.0 / TICK_S)


class _Running:
    """A question under way, and what could be seen of it, tick by tick."""

    def __init__(self, peer: Peer, ask: Ask, buffer: memoryview) -> None:
        self.peer, self.ask, self.buffer = peer, ask, buffer
        self.began_s = time.monotonic()
        self.silent_ticks = self.still_ticks = self.ticks = 0
        self.given_up = False  # what it still says is no news
        self.passed_over = False  # it hangs, and another was asked beside it
        self._peer_heard_s, self._heard_s = peer.client.heard_s, ask.heard_s
        self._floor_bytes = 0

    def tick(self) -> None:
        """Count a tick, against the peer and against this question where nothing has come since the last."""
        self.ticks += 1
        heard_s = self.peer.client.heard_s
        self.silent_ticks = self.silent_ticks + 1 if heard_s == self._peer_heard_s else 0
        self._peer_heard_s = heard_s
        heard_s = self.ask.heard_s
        self.still_ticks = self.still_ticks + 1 if heard_s == self._heard_s else 0
        self._heard_s = heard_s

    def trickles(self) -> bool:
        """Say, now and then, whether too little has come since this was asked last."""
        if self.ticks % _FLOOR_TICKS:
            return False
        came_bytes = self.ask.got_bytes - self._floor_bytes
        self._floor_bytes = self.ask.got_bytes
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
        moved = self._moved
        with trio.move_on_after(TICK_S):
            await moved.wait()
        if moved.is_set():
            self._moved = trio.Event()
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
            running.tick()
            if running.silent_ticks == _PING_TICKS:
                self._peers.ping(running.peer)
            if running.silent_ticks * TICK_S >= self._peers.silence_s:
                running.peer.away()
                running.give_up()
            elif running.trickles():
                running.peer.failed(UnavailableError("a trickle"), self._peers.warn)
                running.give_up()
            elif running.still_ticks * TICK_S >= hangs_s:
                running.passed_over = True

    def _end(self) -> None:
        for running in self._running:
            running.give_up()
