"""One tier after another: what the first has not, or can't give, the second is asked for."""

from collections.abc import Callable

import trio

from bdnfs.core.errors import BdnfsError, SpecError, UnavailableError
from bdnfs.tiers.base import Chunk, Tier

# A tier that is away is left alone for so long: each chunk would wait for it anew.
AVOID_S = 30.0
_WARNINGS_MAX = 3


class Fallback:
    """Asks first; where that misses or fails, second. warn hears of the first few failures.

    Raises what second raises: the last hope's answer is what a reader gets.
    """

    def __init__(self, first: Tier, second: Tier, warn: Callable[[str], None]) -> None:
        self._first, self._second = first, second
        self._warn = warn
        self._avoid_until_s = 0.0
        self._failures = 0

    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        if trio.current_time() >= self._avoid_until_s:
            try:
                found = await self._first.get(chunk, into)
            except SpecError:
                raise
            except BdnfsError as error:
                if isinstance(error, UnavailableError):
                    self._avoid_until_s = trio.current_time() + AVOID_S
                self._tell(error)
            else:
                if found is not None:
                    return found
        return await self._second.get(chunk, into)

    def _tell(self, error: BdnfsError) -> None:
        self._failures += 1
        if self._failures <= _WARNINGS_MAX:
            self._warn(str(error))
        elif self._failures == _WARNINGS_MAX + 1:
            self._warn("more chunks could not be had from the mirror; they come from upstream")
