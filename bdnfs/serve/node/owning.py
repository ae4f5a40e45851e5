"""The owner's part: a chunk that is not here is fetched once, for everyone who waits for it.

Chunk by chunk one flight: from a peer that has it already (this node may be new, and others owned it until
now), else from the mirror; verified, kept in the share if it fits, and given to all who wait. Who waits never owns
the flight: a peer that goes away leaves it running for the others.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import trio

from bdnfs.cache.share import Share, ShareKey
from bdnfs.core.errors import BdnfsError, UnavailableError
from bdnfs.mirror.contents import Contents
from bdnfs.mirror.store import Store
from bdnfs.serve.node.asked import Asked
from bdnfs.tiers.retry import Pace, retrying

# Chunks in memory on their way here, 8 MiB each; whoever comes then waits a little, or is told "not now".
FLIGHTS_MAX = 32
FLIGHTS_WAITING_MAX = 256
# Longer than the mirror needs for a chunk on a bad day; whoever waits has its own deadline.
_FLIGHT_S = 60.0
# As many as a fill gives the mirror: whoever asks has the mirror behind us, too.
_ATTEMPTS = 2
_WRITES_MAX = 8
# Who had it before this node came is among the next in rank.
_PEERS_ASKED = 2
# After so many misses in a row only one chunk of so many is asked for: in a cluster that is all new nobody has any.
_MISSES_MAX = 8
_SELDOM = 16
# What was new then may be everywhere by now.
_MISSES_KEPT_S = 1.0

MIRROR, PEER = "mirror", "peer"


class Fetched(NamedTuple):
    """A chunk that came. tier: mirror or peer; kept: it is in the share now."""

    data: memoryview
    tier: str
    kept: bool


class Peers(Protocol):
    """How other nodes are asked for what they hold."""

    async def held(self, asked: Asked, most: int) -> memoryview | None:
        """Return the chunk, verified, from one of the `most` next in its rank; None where none of them has it."""


class _Flight:
    def __init__(self) -> None:
        self.ended = trio.Event()
        self.fetched: Fetched | None = None
        self.error: BdnfsError | None = None


class Owning:
    """Flights of one node.

    nursery: they run in it
    """

    def __init__(
        self,
        store: Store,
        share: Share,
        peers: Peers,
        nursery: trio.Nursery,
        bug: Callable[[BaseException], str],
    ) -> None:
        self._store, self._share, self._peers, self._nursery, self._bug = store, share, peers, nursery, bug
        self._flights: dict[ShareKey, _Flight] = {}
        self._slots = trio.CapacityLimiter(FLIGHTS_MAX)
        self._threads = trio.CapacityLimiter(_WRITES_MAX)
        self._pace = Pace(FLIGHTS_MAX)
        self._misses = self._skipped = 0
        self._missed_s = 0.0

    @property
    def flights(self) -> int:
        return len(self._flights)

    async def fetch(self, asked: Asked) -> Fetched:
        """Return the chunk, fetched once for all who ask meanwhile.

        Raises NotFoundError where the mirror has no such chunk, IntegrityError where its is damaged, UnavailableError
        where it is away or too much is under way.
        """
        flight = self._flights.get(asked.key)
        if flight is None:
            if len(self._flights) >= FLIGHTS_MAX + FLIGHTS_WAITING_MAX:
                raise UnavailableError("too many chunks are on their way here", retry_after_s=1)
            flight = self._flights[asked.key] = _Flight()
            self._nursery.start_soon(self._fly, flight, asked)
        await flight.ended.wait()
        if flight.error is not None:
            raise flight.error
        assert flight.fetched is not None
        return flight.fetched

    async def _fly(self, flight: _Flight, asked: Asked) -> None:
        try:
            with trio.move_on_after(_FLIGHT_S):
                async with self._slots:
                    flight.fetched = await self._bring(asked)
        except BdnfsError as error:
            flight.error = error
        except Exception as error:
            flight.error = UnavailableError(self._bug(error))
        finally:
            if flight.fetched is None and flight.error is None:
                flight.error = UnavailableError("the mirror did not answer in time", retry_after_s=5)
            del self._flights[asked.key]
            flight.ended.set()

    async def _bring(self, asked: Asked) -> Fetched:
        data, tier = await self._ask_peers(asked), PEER
        if data is None:
            data, tier = await self._ask_mirror(asked), MIRROR
        kept = await trio.to_thread.run_sync(self._share.keep, asked.key, data, limiter=self._threads)
        return Fetched(data.toreadonly(), tier, kept)

    async def _ask_peers(self, asked: Asked) -> memoryview | None:
        if trio.current_time() >= self._missed_s + _MISSES_KEPT_S:
            self._misses = 0
        if self._misses >= _MISSES_MAX:
            self._missed_s = trio.current_time()
            self._skipped = (self._skipped + 1) % _SELDOM
            if self._skipped:
                return None
        found = await self._peers.held(asked, _PEERS_ASKED)
        self._misses = 0 if found is not None else self._misses + 1
        self._missed_s = trio.current_time()
        return found

    async def _ask_mirror(self, asked: Asked) -> memoryview:
        contents = Contents(self._store, asked.key.org, asked.key.namespace)
        data = memoryview(bytearray(asked.size))

        async def once() -> None:
            await trio.to_thread.run_sync(
                contents.fill,
                f"b3:{asked.key.digest}",
                data,
                abandon_on_cancel=True,
                limiter=self._pace.slots,
            )

        await retrying(self._pace, _ATTEMPTS, once)
        return data
