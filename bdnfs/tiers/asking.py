"""One chunk asked of one peer after another, or beside another, until one of them gives it.

Who gives no sign of life for a second is dead, and the next is asked in its place. Who is merely slow, as all are on
a line that is full, is not: to ask twice would fill the line with the same bytes. So a sign of life is any byte from
that peer, of whatever chunk, or its answer to whether it is up. Only who is up and hangs on just this chunk is left
to it while another is asked beside it.

Time is counted in ticks. Those that come late count for little: a process that was stopped, or gets no CPU in time,
must not take all its peers for dead; on a machine that is overloaded they have as little.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import trio
from outcome import Outcome

from bdnfs.cluster.client import Ask, ChunkName, Served
from bdnfs.cluster.peers import Peer, Peers
from bdnfs.core.errors import BdnfsError, UnavailableError
from bdnfs.tiers.origin import MIRROR, PEER

PEERS_MAX = 3
# So long without a sign of life, and it is asked whether it is up.
_PING_S = 0.5
# Nothing of this chunk for so long, and for so many times what is usual: it hangs on it.
HANGS_S, _HANGS_TIMES = 5.0, 3.0
# Fewer bytes than this in this time are a trickle: what it would bring takes hours.
_FLOOR_BYTES, _FLOOR_S = 16 * 1024, 30.0
_log = logging.getLogger(__name__)
T = TypeVar("T")

# What `PeerTier.bring` calls in the thread that asks: before it asks anybody (False: not to), and with the bytes.
First = Callable[[], bool]
Then = Callable[[memoryview], None]


class _Running:
    """A question under way, and what could be seen of it, tick by tick."""

    def __init__(self, peer: Peer, ask: Ask, buffer: memoryview) -> None:
        self.peer, self.ask, self.buffer = peer, ask, buffer
        self.began_s = time.monotonic()
        self.silent_s = self.still_s = self._floor_s = 0.0
        self.is_asked = False
        self.given_up = False  # what it still says is no news
        self.passed_over = False  # it hangs, and another was asked beside it
        self.pinged = False
        self._peer_heard_s, self._heard_s = peer.client.heard_s, ask.heard_s
        self._floor_bytes = 0

    def asks(self) -> None:
        """It begins now."""
        self.began_s = self.ask.heard_s = time.monotonic()
        self.is_asked = True

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
    """The questions for one chunk: at most PEERS_MAX, each to another peer, each in a thread.

    What comes of them is decided in functions that await nothing; `run` only waits for the end.
    """

    def __init__(
        self,
        name: ChunkName,
        order: Iterator[Peer],
        into: memoryview,
        peers: Peers,
        first: First | None = None,
        then: Then | None = None,
    ) -> None:
        """order: whom to ask, one after the other; first, then: as in `PeerTier.bring`."""
        self._name, self._order, self._into, self._peers = name, order, into, peers
        self._first, self._then = first, then
        self._taken: _Running | None = None  # whose bytes `then` gets; of several threads
        self._taking = threading.Lock()
        self._is_stopped = False  # `first` has said so
        self._running: list[_Running] = []
        self._asked = 0
        self._into_used = False  # a thread may write to it
        self._won: tuple[_Running, Served] | None = None
        self._is_missing = False  # its owner knows that the mirror has none
        self._bug: BaseException | None = None
        self._over = trio.Event()
        self._trio = trio.lowlevel.current_trio_token()

    async def run(self) -> str | None:
        """Fill `into`; return the tier that it came from, None where nobody gives the chunk."""
        self._settle()
        self._peers.watched.add(self)
        try:
            await self._over.wait()
        finally:
            self._peers.watched.discard(self)
            self._end()
        if self._bug is not None:
            raise self._bug
        if self._won is None:
            return None
        winner, served = self._won
        if winner.buffer is not self._into and self._then is None:
            self._into[:] = winner.buffer
        # What our own node had to bring from the mirror is no peer's.
        return MIRROR if winner.peer.own and served == "mirror" else PEER

    def tick(self, counts_s: float) -> None:
        """Look at what is under way: who is dead, who trickles, who hangs. counts_s: how much time that was."""
        hangs_s = max(HANGS_S, _HANGS_TIMES * self._peers.usual_s)
        for running in self._running:
            if running.given_up or not running.is_asked:
                continue
            running.tick(counts_s)
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
            elif running.still_s >= hangs_s and not running.passed_over:
                _log.info("the peer %s hangs on chunk %s", running.peer.name, self._name.digest[:12])
                running.passed_over = True
        self._settle()

    def _settle(self) -> None:
        """Ask the next one where nobody is left to wait for; see whether it is over."""
        if self._won is None and not (self._is_missing or self._is_stopped or self._bug):
            waits = any(not (running.given_up or running.passed_over) for running in self._running)
            if not waits and self._taken is None:
                self._ask_next()
            if self._running:
                return
        self._end()
        if not self._into_used:  # whoever is asked next fills it
            self._over.set()

    def _ask_next(self) -> None:
        """Ask the next peer in order, if there is one."""
        peer = next(self._order, None) if self._asked < PEERS_MAX else None
        if peer is None:
            return
        self._asked += 1
        buffer = self._into if not self._into_used else memoryview(bytearray(len(self._into)))
        self._into_used = self._into_used or buffer is self._into
        running = _Running(peer, peer.client.asking(self._name, buffer), buffer)
        self._running.append(running)

        def deliver(outcome: Outcome[Served | None]) -> None:
            with suppress(trio.RunFinishedError):  # nobody wants it any more
                self._trio.run_sync_soon(self._ended, running, outcome)

        # No task for it, as `trio.to_thread` has: of what a chunk costs that would be the largest part.
        trio.lowlevel.start_thread_soon(lambda: self._work(running), deliver)

    def _work(self, running: _Running) -> Served | None:
        """Ask one peer, and take what it gives; runs in a thread."""
        first, self._first = self._first, None
        if first is not None and not self._ours(first):
            self._is_stopped = True
            return None
        running.asks()
        served = running.ask.run()
        if served is not None and self._then is not None:
            with self._taking:
                if self._taken is None:
                    self._taken = running
            if self._taken is running:
                then, buffer = self._then, running.buffer
                self._ours(lambda: then(buffer))
        return served

    def _ours(self, call: Callable[[], T]) -> T | None:
        """Return what call returns; what goes wrong in it is no peer's fault."""
        try:
            return call()
        except BaseException as error:
            self._bug = error
            return None

    def _ended(self, running: _Running, outcome: Outcome[Served | None]) -> None:
        """Take in what came of a question."""
        self._running.remove(running)
        if running.buffer is self._into:
            self._into_used = False
        try:
            served = outcome.unwrap()
        except BdnfsError as error:
            if not running.given_up:
                running.peer.failed(error, self._peers.warn)
        except BaseException as error:
            self._bug = error
        else:
            if served is None:
                self._is_missing = not self._is_stopped
            elif self._won is None and (self._then is None or self._taken is running):
                self._won = running, served
                self._peers.answered(running.peer, time.monotonic() - running.began_s)
        self._settle()

    def _end(self) -> None:
        for running in self._running:
            running.give_up()
