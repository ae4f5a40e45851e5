"""Asking other nodes for what they hold: who owned a chunk before this node came may have it still."""

from collections.abc import Callable

import trio

from bdnfs.cluster.access import Access
from bdnfs.cluster.client import ChunkName, PeerClient
from bdnfs.cluster.membership import Member, Membership
from bdnfs.cluster.owners import Rendezvous
from bdnfs.core.errors import BdnfsError, IntegrityError
from bdnfs.serve.node.asked import Asked

# The mirror is there, too: who has not said in this time that it has the chunk is not waited for.
_ANSWER_S = 1.0
# Once bytes come: a chunk over a busy line.
_SILENT_S = 5.0
# A peer that is away is left alone for so long; one that sends what is wrong for longer.
_AVOID_S, _AVOID_WRONG_S = 15.0, 60.0
_THREADS = 8


class OtherNodes:
    """The members of a cluster but this one. Of one thread.

    me: this node's name
    """

    def __init__(self, membership: Membership, me: str, access: Access, warn: Callable[[str], None]) -> None:
        self._membership, self._me, self._access, self._warn = membership, me, access, warn
        self._seen: frozenset[Member] | None = None
        self._ring = Rendezvous(())
        self._addresses: dict[str, str] = {}
        self._clients: dict[str, PeerClient] = {}
        self._avoided: dict[str, float] = {}
        self._threads = trio.CapacityLimiter(_THREADS)

    async def held(self, asked: Asked, most: int) -> memoryview | None:
        """Return the chunk, verified, from one of the next in its rank; None where none of them says in time."""
        self._refresh()
        now_s = trio.current_time()
        for name in self._ring.ranked(bytes.fromhex(asked.key.digest))[:most]:
            if self._avoided.get(name, 0.0) <= now_s:
                found = await self._ask(name, asked)
                if found is not None:
                    return found
        return None

    async def _ask(self, name: str, asked: Asked) -> memoryview | None:
        # Of this question alone: where it is given up, its thread may write to it for a while yet.
        data = memoryview(bytearray(asked.size))
        file, blob = asked.file or f"b3:{asked.key.digest}", asked.blob.hex() if asked.blob else ""
        named = ChunkName(*asked.key, asked.start, asked.stop, file, blob)
        ask = self._clients[name].asking(named, data, held=True)

        found = False

        async def run() -> None:
            nonlocal found
            tier = await trio.to_thread.run_sync(ask.run, abandon_on_cancel=True, limiter=self._threads)
            found = tier is not None
            nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await _quiet(lambda: ask.got_bytes)
                nursery.cancel_scope.cancel()
        except* IntegrityError as group:
            self._avoided[name] = trio.current_time() + _AVOID_WRONG_S
            self._warn(f"{name} sent what is not the chunk that was asked for: {group.exceptions[0]}")
        except* BdnfsError:
            self._avoided[name] = trio.current_time() + _AVOID_S
        finally:
            if not found:
                ask.abort()
        return data if found else None

    def _refresh(self) -> None:
        members = self._membership.members()
        if members == self._seen:
            return
        self._seen = members
        others = {each.name: each.address for each in members if each.name != self._me and each.owns}
        for name in [name for name in self._clients if others.get(name) != self._addresses.get(name)]:
            self._clients.pop(name).close()
        self._addresses, self._ring = others, Rendezvous(others)
        for name, address in others.items():
            if name not in self._clients:
                self._clients[name] = PeerClient(address, self._access, self._me)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


async def _quiet(got_bytes: Callable[[], int]) -> None:
    """Return when nothing has come for too long."""
    await trio.sleep(_ANSWER_S)
    seen = 0
    while got_bytes() > seen:
        seen = got_bytes()
        await trio.sleep(_SILENT_S)
