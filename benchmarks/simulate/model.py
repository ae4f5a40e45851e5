"""A cluster that fills itself with one snapshot, in steps of a fraction of the time a chunk takes on a link.

Real: who owns what (`bdnfs.cluster.owners`), and the scheduler's rules. Every node asks for all chunks in an order of
its own, so many at once, each of its owner; an owner asks the mirror for a chunk once, when the first wants it, so
many at once, first come first served; it forwards whole chunks to all who wait, side by side.

Modelled: a link is full duplex, and what flows on it shares it as TCP's streams would (max-min fair); the network in
between is never full; an answer of the mirror begins after a latency, an owner's at once. Nobody is slow, dies or comes
late; disks and CPUs keep up.

All nodes' transfers are arrays, so a step costs the same few calls of numpy whatever happens in it.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bdnfs.cluster.owners import Rendezvous
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.serve.node.owning import FLIGHTS_MAX
from bdnfs.spec.config import UpstreamConfig

# More rounds change no figure's third digit.
_ROUNDS = 4
_DONE = 1e-9
_IDLE, _WAITING, _MOVING = 0, 1, 2

Order = Literal["random", "interleaved"]


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    in_flight:        chunks that a node asks for at once
    mirror_in_flight: chunks that one owner asks the mirror for at once
    link_bits:        of each node, per second, each way
    mirror_over_link: the mirror's uplink, in links
    mirror_latency_s: until a byte of an answer of the mirror's
    step:             of the clock, in the time that a link takes for a chunk
    order:            random: of all chunks; interleaved: each owner's come in an order that all nodes share, which
                      owner's turn it is is random
    """

    nodes: int
    size_bytes: int = 140 * 10**9
    in_flight: int = UpstreamConfig().fetches_max
    mirror_in_flight: int = FLIGHTS_MAX
    link_bits: float = 25e9
    mirror_over_link: float = 1.0
    mirror_latency_s: float = 0.05
    step: float = 0.5
    order: Order = "interleaved"
    seed: int = 5

    @property
    def chunks(self) -> int:
        return -(-self.size_bytes // CHUNK_BYTES)

    @property
    def chunk_s(self) -> float:
        """The time that a link takes for a chunk."""
        return CHUNK_BYTES * 8 / self.link_bits


@dataclass
class Outcome:
    """What came of it: when each node was whole (s), chunks each has sent to others, chunks that the mirror sent.

    progress: seconds, and the part of all chunks then had by the node that has most, the mean, that has least
    """

    whole_s: NDArray[np.float64]
    sent: NDArray[np.int64]
    mirror_sent: int
    owned: NDArray[np.int64]
    progress: list[tuple[float, float, float, float]] = field(default_factory=list)
    took_s: float = 0.0


def simulate(cluster: Cluster, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Run it to its end."""
    began_s = time.monotonic()
    run = _Run(cluster)
    next_percent = 10
    while not run.ended:
        run.step()
        if run.percent >= next_percent:
            say(f"{run.percent} % after {time.monotonic() - began_s:.0f} s")
            next_percent = run.percent - run.percent % 10 + 10
    outcome = Outcome(run.whole * cluster.chunk_s, run.sent, run.mirror_sent, run.owned, run.progress)
    outcome.took_s = time.monotonic() - began_s
    return outcome


class _Run:
    """Time is counted in what a link takes for a chunk, content in chunks.

    Slots, one for each chunk that a node asks for at once: what it is at, which chunk, how much of it is missing,
    and how far the step went beyond the end of the one before. The mirror's transfers have slots of their own.
    """

    def __init__(self, cluster: Cluster) -> None:
        nodes, self._cluster = cluster.nodes, cluster
        self._random = np.random.default_rng(cluster.seed)
        self.owner, self.owned = _owners(nodes, cluster.chunks, cluster.seed)
        kind = np.int16 if cluster.chunks < 2**15 else np.int32
        self._order = _orders(self.owner, nodes, cluster.order, self._random).astype(kind)
        self._asked = np.zeros(nodes, dtype=np.int64)
        self._had = np.zeros(nodes, dtype=np.int64)
        shape = (nodes, cluster.in_flight)
        self._state = np.zeros(shape, dtype=np.int8)
        self._chunk = np.zeros(shape, dtype=np.int64)
        self._missing = np.zeros(shape)
        self._credit = np.zeros(shape)
        self._node = np.repeat(np.arange(nodes), cluster.in_flight).reshape(shape)
        # At owners:
        self._wanted = np.zeros(cluster.chunks, dtype=bool)
        self._present = np.zeros(cluster.chunks, dtype=bool)
        self._queue: list[deque[int]] = [deque() for _ in range(nodes)]
        self._fetching = np.zeros(nodes, dtype=np.int64)
        self._fetched = np.zeros(0, dtype=np.int64)  # the chunks under way from the mirror
        self._fetch_missing = np.zeros(0)
        self._fetch_begins = np.zeros(0)
        self._latency = cluster.mirror_latency_s / cluster.chunk_s
        self.now = 0.0
        self.whole = np.zeros(nodes)
        self.sent = np.zeros(nodes, dtype=np.int64)
        self.mirror_sent = 0
        self.progress: list[tuple[float, float, float, float]] = []
        self._next_progress = 0.0

    @property
    def ended(self) -> bool:
        return bool((self._had == self._cluster.chunks).all())

    @property
    def percent(self) -> int:
        return int(100 * self._had.sum() // (self._cluster.chunks * self._cluster.nodes))

    def step(self) -> None:
        self._ask()
        self._fetch()
        self._begin()
        self._move()
        self.now += self._cluster.step
        self._note()

    def _ask(self) -> None:
        """Every idle slot takes the next chunk of its node's order."""
        idle = self._state == _IDLE
        rank = np.cumsum(idle, axis=1) - 1
        place = self._asked[:, None] + rank
        idle &= place < self._cluster.chunks
        if not idle.any():
            return
        node = self._node[idle]
        chunk = self._order[node, place[idle]].astype(np.int64)
        self._chunk[idle], self._state[idle], self._missing[idle] = chunk, _WAITING, 1.0
        self._asked += idle.sum(axis=1)
        new = np.unique(chunk[~self._wanted[chunk]])
        self._wanted[new] = True
        for each in self._random.permutation(new).tolist():
            self._queue[self.owner[each]].append(each)

    def _fetch(self) -> None:
        """Owners ask the mirror for what is wanted of them, so many at once."""
        begun = []
        for owner, queue in enumerate(self._queue):
            while queue and self._fetching[owner] < self._cluster.mirror_in_flight:
                begun.append(queue.popleft())
                self._fetching[owner] += 1
        if begun:
            self._fetched = np.append(self._fetched, begun)
            self._fetch_missing = np.append(self._fetch_missing, np.ones(len(begun)))
            self._fetch_begins = np.append(self._fetch_begins, np.full(len(begun), self.now + self._latency))

    def _begin(self) -> None:
        """What is present at its owner begins to move, or is there, where the owner wants it itself."""
        ready = (self._state == _WAITING) & self._present[self._chunk]
        own = ready & (self.owner[self._chunk] == self._node)
        self._state[ready] = _MOVING
        self._missing[ready] -= self._credit[ready]
        self._missing[own] = 0.0
        self._credit[:] = 0.0

    def _move(self) -> None:
        moving = self._state == _MOVING
        node, chunk = self._node[moving], self._chunk[moving]
        owner, missing = self.owner[chunk], self._missing[moving]
        # What needs no link takes no part of one.
        linked = missing > 0
        answering = self._fetch_begins <= self.now
        senders = np.concatenate([owner[linked], np.full(int(answering.sum()), self._cluster.nodes)])
        receivers = np.concatenate([node[linked], self.owner[self._fetched[answering]]])
        rates = _shared(senders, receivers, self._cluster.nodes, self._cluster.mirror_over_link)
        moved = rates * self._cluster.step
        count = int(linked.sum())
        missing[linked] -= moved[:count]
        self._missing[moving] = missing
        self._fetch_missing[answering] -= moved[count:]
        self._arrive(moving, node, owner, missing, linked, rates[:count])
        self._land()

    def _arrive(
        self,
        moving: NDArray[np.bool_],
        node: NDArray[np.int64],
        owner: NDArray[np.int64],
        missing: NDArray[np.float64],
        linked: NDArray[np.bool_],
        rates: NDArray[np.float64],
    ) -> None:
        """Chunks that came: their slots are idle again, and have a credit of what went beyond."""
        here = missing <= _DONE
        nodes = self._cluster.nodes
        self._had += np.bincount(node[here], minlength=nodes)
        self.sent += np.bincount(owner[here & linked], minlength=nodes)
        state, credit = self._state[moving], self._credit[moving]
        state[here] = _IDLE
        credit[here & linked] = -np.minimum(missing[here & linked], 0.0)
        self._state[moving], self._credit[moving] = state, credit
        done = (self._had == self._cluster.chunks) & (self.whole == 0)
        self.whole[done] = self.now + self._cluster.step

    def _land(self) -> None:
        """Chunks that came from the mirror are present at their owners."""
        here = self._fetch_missing <= _DONE
        if here.any():
            landed = self._fetched[here]
            self._present[landed] = True
            np.subtract.at(self._fetching, self.owner[landed], 1)
            self.mirror_sent += len(landed)
            self._fetched = self._fetched[~here]
            self._fetch_missing = self._fetch_missing[~here]
            self._fetch_begins = self._fetch_begins[~here]

    def _note(self) -> None:
        if self.now >= self._next_progress or self.ended:
            part = self._had / self._cluster.chunks
            now_s = self.now * self._cluster.chunk_s
            self.progress.append((now_s, float(part.max()), float(part.mean()), float(part.min())))
            self._next_progress += self._cluster.chunks / 200


def _owners(nodes: int, chunks: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each chunk's owner, by its number, and how many each owns: what `bdnfs.cluster` says."""
    names = [f"node{number:04}:7891" for number in range(nodes)]
    dice = np.random.default_rng(seed)
    digests = [dice.bytes(32) for _ in range(chunks)]
    found = Rendezvous(names).owners(digests)
    places = {name: number for number, name in enumerate(names)}
    owner = np.array([places[found[digest]] for digest in digests])
    return owner, np.bincount(owner, minlength=nodes)


def _shared(
    senders: NDArray[Any], receivers: NDArray[Any], nodes: int, mirror_over_link: float
) -> NDArray[np.float64]:
    """Return the rate of each transfer, in links: what is left on both its links is shared out, again and again."""
    up, down = np.ones(nodes + 1), np.ones(nodes)
    up[nodes] = mirror_over_link
    rates = np.zeros(len(senders))
    open_ = np.arange(len(senders))
    for _ in range(_ROUNDS):
        source, target = senders[open_], receivers[open_]
        more = np.minimum(
            (up / np.maximum(np.bincount(source, minlength=nodes + 1), 1))[source],
            (down / np.maximum(np.bincount(target, minlength=nodes), 1))[target],
        )
        rates[open_] += more
        up -= np.bincount(source, more, minlength=nodes + 1)
        down -= np.bincount(target, more, minlength=nodes)
        open_ = open_[(up[source] > 1e-6) & (down[target] > 1e-6)]
        if not len(open_):
            break
    return rates


def _orders(
    owner: NDArray[np.int64], nodes: int, order: Order, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return in which order each node asks for the chunks."""
    orders = np.tile(np.arange(len(owner)), (nodes, 1))
    random.permuted(orders, axis=1, out=orders)
    if order == "interleaved":
        owned = [np.flatnonzero(owner == node) for node in range(nodes)]
        for each in orders:
            # Where each owner's turns are stays as it is; what is asked of it then comes in the order all share.
            turns = np.argsort(owner[each], kind="stable")
            each[turns] = np.concatenate(owned)
    return orders
