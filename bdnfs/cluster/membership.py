"""Who is a member of the cluster now: the port, and the list that never changes."""

import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import msgspec
import trio

from bdnfs.core.errors import SpecError
from bdnfs.spec.cluster import is_address

_NAME = re.compile(r"[!-~]{1,255}")
_INCARNATION = re.compile(r"[!-~]{0,64}")


class Member(msgspec.Struct, frozen=True):
    """One node of the cluster; ValueError for what no node can be.

    name:        what it is ranked by; its address, unless it has a name that outlives addresses
    address:     HOST:PORT by which the others reach it
    share_bytes: disk for chunks that it owns; 0: it owns none, None: not known
    incarnation: differs each time it starts, "" where nobody says
    """

    name: str
    address: str
    share_bytes: int | None = None
    incarnation: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not _INCARNATION.fullmatch(self.incarnation):
            raise ValueError("a name is 1 to 255 printable ASCII characters, an incarnation up to 64")
        if not is_address(self.address):
            raise ValueError("an address is HOST:PORT")
        if self.share_bytes is not None and self.share_bytes < 0:
            raise ValueError("a share is 0 or more bytes")

    @property
    def owns(self) -> bool:
        """Whether it is one of those among whom chunks are dealt out."""
        return self.share_bytes != 0


class Membership(Protocol):
    """Who is a member. What it says may be seconds old: another node may know others."""

    def members(self) -> frozenset[Member]:
        """Return the members known now; never waits, never fails."""

    async def changed(self, seen: frozenset[Member], /) -> frozenset[Member]:
        """Return the members as soon as they are others than seen."""

    def join(self, me: Member, /) -> AbstractAsyncContextManager[None]:
        """Be a member for as long as the block runs, also where the others can't be told at once.

        Raises CredentialsError or SpecError where this node can't be one.
        """


class StaticMembership:
    """A list that stands in the config; who of it is up shows when it is asked."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._members = frozenset(Member(address, address) for address in addresses)

    def members(self) -> frozenset[Member]:
        return self._members

    async def changed(self, seen: frozenset[Member], /) -> frozenset[Member]:
        if seen == self._members:
            await trio.sleep_forever()
        return self._members

    @asynccontextmanager
    async def join(self, me: Member, /) -> AsyncIterator[None]:
        if me.address not in {member.address for member in self._members}:
            raise SpecError(
                f"this node is reached at {me.address}, which is not among the cluster's "
                f"{len(self._members)} members; add it on every node, or set advertise to the one that it is"
            )
        yield
