"""Another try for what may pass, at upstream's pace."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from bdnfs.core.backoff import RETRY_AFTER_MAX_S, pause_s
from bdnfs.core.errors import IntegrityError, UnavailableError
from bdnfs.tiers.base import Chunk, Tier

_SUCCESSES_PER_STEP = 32

T = TypeVar("T")


class Pace:
    """How many fetches an origin gets at once, and from when: less after each refusal.

    Additive increase, multiplicative decrease, as TCP does it: what was asked before the last
    decrease says nothing about it, so sixteen refusals at once halve once.
    """

    def __init__(self, fetches_max: int) -> None:
        self.slots = trio.CapacityLimiter(fetches_max)
        self._fetches_max = fetches_max
        self._successes = 0
        self._resume_s = 0.0
        self._halved_s = float("-inf")

    def succeeded(self) -> None:
        self._successes += 1
        if self._successes % _SUCCESSES_PER_STEP == 0:
            self.slots.total_tokens = min(self._fetches_max, self.slots.total_tokens + 1)

    def refused(self, retry_after_s: float | None, asked_s: float) -> None:
        """Upstream asked for less: halve, and let nobody ask again before its time.

        asked_s: trio's time when what it refused was asked for.
        """
        if asked_s >= self._halved_s:
            self.slots.total_tokens = max(1, int(self.slots.total_tokens // 2))
            self._halved_s = trio.current_time()
        if retry_after_s:
            self._resume_s = max(self._resume_s, trio.current_time() + retry_after_s)

    async def wait(self) -> None:
        """Wait until upstream's last Retry-After has passed."""
        await trio.sleep_until(self._resume_s)


async def retrying(pace: Pace, attempts: int, once: Callable[[], Awaitable[T]]) -> T:
    """Return what `once` returns, asking up to `attempts` times, no faster than upstream wants.

    Raises the last UnavailableError; one that asks for more than RETRY_AFTER_MAX_S at once.
    """
    for attempt in range(1, attempts + 1):
        await pace.wait()
        asked_s = trio.current_time()
        try:
            found = await once()
        except UnavailableError as error:
            if error.retry_after_s is not None:
                pace.refused(min(error.retry_after_s, RETRY_AFTER_MAX_S), asked_s)
            if (error.retry_after_s or 0) > RETRY_AFTER_MAX_S or attempt == attempts:
                raise
            await trio.sleep(pause_s(attempt))
        except IntegrityError:
            # A byte flipped on the way is worth one more try; the same again is not.
            if attempt >= 2 or attempt == attempts:
                raise
        else:
            pace.succeeded()
            return found
    raise AssertionError("the last attempt returns or raises")


class Retry:
    """A tier that tries another one up to `attempts` times."""

    def __init__(self, tier: Tier, pace: Pace, attempts: int) -> None:
        self._tier = tier
        self._pace = pace
        self._attempts = attempts

    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        return await retrying(self._pace, self._attempts, lambda: self._tier.get(chunk, into))
