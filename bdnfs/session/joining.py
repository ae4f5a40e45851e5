"""As what this node joins its cluster: the membership that the config names, and this node's place in it."""

import socket
from collections.abc import Awaitable, Callable
from typing import Any

from bdnfs.cluster.membership import Membership, StaticMembership
from bdnfs.core.errors import SpecError
from bdnfs.spec.cluster import ClusterConfig, is_address

_ANY = ("0.0.0.0", "::", "*")


def membership_of(config: ClusterConfig) -> tuple[Membership, Callable[..., Awaitable[Any]] | None]:
    """Return who is a member, as config has it, and what has to run for it (`nursery.start`), if anything.

    Raises SpecError for a CA that can't be read.
    """
    if config.redis is None:
        return StaticMembership(config.members), None
    try:
        from bdnfs.cluster.leases import LeasedMembership  # late: the client takes half a second
    except ModuleNotFoundError as error:
        if error.name != "coredis":
            raise
        raise SpecError(
            "cluster: redis needs coredis, which is not installed; run: pip install 'bdnfs[cluster]'"
        ) from None
    leased = LeasedMembership(config.redis, config.name)
    return leased, leased.run


def address_of(config: ClusterConfig) -> str:
    """Return HOST:PORT by which the others reach this node: which of the list it is, where there is a list.

    Raises SpecError where that can't be told.
    """
    if config.advertise is not None:
        return config.advertise
    found = [address for address in _own(config) if is_address(address)]
    if not config.members:
        return found[0]
    among = [address for address in found if address in config.members]
    if not among:
        raise SpecError(
            f"cluster: this node is {' or '.join(found)}, none of which is among the {len(config.members)} members; "
            "add it on every node, or set advertise to the one that it is"
        )
    return among[0]


def _own(config: ClusterConfig) -> list[str]:
    """Return what this node may be called, the likeliest first."""
    host = socket.gethostname().lower()
    names = [host, host.partition(".")[0]]
    if config.host not in _ANY:
        names.insert(0, config.host.lower())
    return [
        f"[{name}]:{config.port}" if ":" in name else f"{name}:{config.port}" for name in dict.fromkeys(names)
    ]
