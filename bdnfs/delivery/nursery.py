"""A nursery whose first error is the error: nobody here handles groups of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """A trio nursery that raises the first exception of its tasks instead of a group.

    The others are what its cancellation made of the tasks beside it.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error = _first(group)
        raise error from error.__cause__


def _first(error: BaseException) -> BaseException:
    """Return the first leaf that isn't a cancellation; a bug before an error meant for users."""
    leaves = list(_leaves(error))
    for kind in (Exception, BaseException):
        for leaf in leaves:
            if isinstance(leaf, kind) and not isinstance(leaf, trio.Cancelled):
                return leaf
    return leaves[0]


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
