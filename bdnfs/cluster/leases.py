"""Membership by leases in Redis or Valkey: whoever renews its lease is a member.

One task asks at every beat, and that renews, too. Redis away: the members last known go on. Back: for one lease's
time nobody who was known is dropped, for Redis may have lost them all, and hears of them again only as each
node comes back; that takes less.

Whoever joins under a name has it, so a restarted node is back at once. An earlier holder of the name finds its
lease taken, says so and is no member until the name is free again.
"""

import logging
import math
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import trio

from bdnfs.cluster.exchange import VALUE_BYTES_MAX, Act, Exchange, Reply, open_exchange, tls_context
from bdnfs.cluster.membership import Member
from bdnfs.core.backoff import pause_s
from bdnfs.core.errors import UNREADABLE, BdnfsError, SpecError, UnavailableError
from bdnfs.spec.cluster import RedisConfig

TTL_S = 15.0
# How late a node hears of others; a thousand nodes ask 500 times a second, nearly always to hear nothing new.
BEAT_S_MAX = 2.0
_NAMED_MAX = 5
_log = logging.getLogger(__name__)


class LeasedMembership:
    """The members that hold leases in Redis, while `run` runs.

    The state changes between awaits alone:
    _listed  what Redis said last, by name
    _known   what `members` returns
    _lease   what this node is a member as, with its bytes in Redis; None: it only looks
    _held    as what Redis knows that lease
    _wrong   why the last exchange failed, None: it didn't
    _settled when those that Redis doesn't list are gone (trio's clock)
    """

    def __init__(self, config: RedisConfig, cluster: str, ttl_s: float = TTL_S) -> None:
        """Raises SpecError for a CA that can't be read."""
        self._config, self._cluster, self._ttl_s = config, cluster, ttl_s
        self._tls = tls_context(config)
        # Three thirds: a beat may fail twice, and whoever waits to try again does so within a lease.
        self._third_s = ttl_s / 3
        self._listed: dict[str, Member] = {}
        self._known: frozenset[Member] = frozenset()
        self._lease: tuple[Member, bytes] | None = None
        self._held = "free"
        self._version = b""
        self._wrong: BdnfsError | None = None
        self._settled = -math.inf
        self._strangers = 0
        self._change = trio.Event()
        self._one_at_a_time = trio.Lock()

    def members(self) -> frozenset[Member]:
        return self._known

    async def changed(self, seen: frozenset[Member], /) -> frozenset[Member]:
        while self._known == seen:
            await self._change.wait()
        return self._known

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask for ever; start it with `await nursery.start(membership.run)`, which returns once asked.

        Redis away is no error. Raises CredentialsError, SpecError or UpstreamError where its first answer shows that
        it is of no use to wait: a wrong password, an untrusted certificate. Later on these are logged.
        """
        failed = 0
        error = await self._once("look")
        if error is not None and not isinstance(error, UnavailableError):
            raise error
        task_status.started()
        while True:
            if error is not None:
                failed = failed + 1
                await trio.sleep(min(pause_s(failed), self._third_s))
            async with self._open() as exchange:
                error = None
                while error is None:
                    error = await self._beat(exchange)
                    if error is None:
                        failed = 0
                        await trio.sleep(min(BEAT_S_MAX, self._third_s) * random.uniform(0.8, 1.0))

    @asynccontextmanager
    async def join(self, me: Member, /) -> AsyncIterator[None]:
        if self._lease is not None:
            raise SpecError(f"this node is a member already, as {self._lease[0].name}")
        value = msgspec.json.encode(me)
        if len(value) > VALUE_BYTES_MAX:
            raise SpecError(
                f"{me.name} says {len(value)} bytes of itself; at most {VALUE_BYTES_MAX} are taken"
            )
        self._lease, self._held = (me, value), "free"
        try:
            error = await self._once("take")
            if error is not None and not isinstance(error, UnavailableError):
                raise error
            yield
        finally:
            # Also on the way out of a cancelled nursery: the others are to know at once, not after a lease.
            self._held = "left"
            if self._wrong is None:
                with trio.move_on_after(self._third_s, shield=True):
                    await self._once("leave")
            if self._listed.get(me.name) == me:
                del self._listed[me.name]
            self._show()
            self._lease = None

    def _open(self) -> AbstractAsyncContextManager[Exchange]:
        return open_exchange(self._config, self._cluster, self._tls, self._third_s)

    async def _once(self, act: Act) -> BdnfsError | None:
        """Act over a connection of its own; return what went wrong."""
        async with self._open() as exchange:
            return await self._exchange(exchange, act)

    async def _beat(self, exchange: Exchange) -> BdnfsError | None:
        return await self._exchange(exchange, "renew" if self._lease else "look")

    async def _exchange(self, exchange: Exchange, act: Act) -> BdnfsError | None:
        # A renewal on its way must not come after the lease was given back.
        async with self._one_at_a_time:
            if act == "renew" and self._held == "free":
                act = "take"  # joined while Redis was away
            elif act == "renew" and (self._lease is None or self._held == "left"):
                act = "look"
            name, value = (self._lease[0].name, self._lease[1]) if self._lease else ("", b"")
            try:
                reply = await exchange(act, name, value, self._version, self._ttl_s, self._third_s)
            except BdnfsError as error:
                self._failed(error)
                return error
            self._answered(act, reply)
            return None

    def _failed(self, error: BdnfsError) -> None:
        if type(error) is not type(self._wrong):
            _log.warning("%s; the %d members last known go on", error, len(self._known))
        self._wrong, self._version, self._settled = error, b"", math.inf
        self._show()

    def _answered(self, act: Act, reply: Reply) -> None:
        now = trio.current_time()
        if self._wrong is not None:
            _log.warning("%s answers again", self._config)
            self._wrong, self._settled = None, now + self._ttl_s
        if act in ("take", "renew"):
            self._hold(reply.held)
        if reply.listed is not None:
            self._listed = self._checked(reply.listed)
        self._version = reply.version
        self._show()

    def _hold(self, held: str) -> None:
        if held != self._held and self._lease is not None:
            name = self._lease[0].name
            match held:
                case "taken":
                    _log.warning(
                        "another node joined as %s; this one is no member until that one leaves: give each "
                        "node an advertise of its own",
                        name,
                    )
                case "full":
                    _log.warning("the cluster has all the members it can have; %s is none", name)
                case _ if self._held in ("taken", "full"):
                    _log.warning("%s is a member again", name)
            self._held = held

    def _checked(self, listed: dict[bytes, bytes]) -> dict[str, Member]:
        found, strangers = {}, 0
        for name, value in listed.items():
            try:
                member = msgspec.json.decode(value, type=Member)
            except UNREADABLE:
                strangers += 1
                continue
            if member.name.encode() == name:
                found[member.name] = member
            else:
                strangers += 1
        if strangers > self._strangers:
            _log.warning("%s holds %d leases that no node wrote; they are ignored", self._config, strangers)
        self._strangers = strangers
        return found

    def _show(self) -> None:
        """Work out who is known now, wake those who wait for a change, and say in one line what changed."""
        known = dict(self._listed)
        if trio.current_time() < self._settled:
            known = {member.name: member for member in self._known} | known
        if self._lease is not None:
            me = self._lease[0]
            if self._held in ("free", "mine"):
                known[me.name] = me
            elif known.get(me.name) == me:
                del known[me.name]
        members = frozenset(known.values())
        if members == self._known:
            return
        gone, come = self._known - members, members - self._known
        self._known = members
        _log.info("members: %d; come: %s; gone: %s", len(members), _names(come), _names(gone))
        self._change.set()
        self._change = trio.Event()


def _names(members: Iterable[Member]) -> str:
    names = sorted(member.name for member in members)
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return (", ".join(names[:_NAMED_MAX]) or "none") + more
