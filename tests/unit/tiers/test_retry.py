"""Trying again: at upstream's pace, not for ever, and never for what trying can't mend."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import trio
import trio.testing

from bdnfs.core.backoff import RETRY_AFTER_MAX_S
from bdnfs.core.errors import ChangedError, CredentialsError, IntegrityError, NotFoundError, UnavailableError
from bdnfs.manifest.model import FileEntry
from bdnfs.tiers.base import Chunk
from bdnfs.tiers.retry import Pace, Retry, retrying

T = TypeVar("T")
CHUNK = Chunk("1" * 40, FileEntry("model.bin", 4), 0)


class ScriptedTier:
    """Answers as scripted, then well; notes when it was asked."""

    name = "origin"

    def __init__(self, *answers: Exception | bool, takes_s: float = 0.0) -> None:
        self.answers = list(answers)
        self.asked_s: list[float] = []
        self.takes_s = takes_s

    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        self.asked_s.append(trio.current_time())
        answer = self.answers.pop(0) if self.answers else True
        await trio.sleep(self.takes_s)
        if isinstance(answer, Exception):
            raise answer
        into[:] = b"good"
        return "origin" if answer else None


def run(task: Callable[[], Awaitable[T]]) -> T:
    """Run in a time of its own, which passes as soon as everyone sleeps."""
    return trio.run(task, clock=trio.testing.MockClock(autojump_threshold=0))


async def get(tier: ScriptedTier, attempts: int = 5, pace: Pace | None = None) -> bytes | None:
    """Ask through a Retry; return the bytes, None for a miss."""
    into = bytearray(4)
    found = await Retry(tier, pace or Pace(16), attempts).get(CHUNK, memoryview(into))
    return bytes(into) if found else None


def busy(retry_after_s: float | None = None) -> UnavailableError:
    return UnavailableError("busy", retry_after_s=retry_after_s)


def test_what_passes_is_tried_again_after_growing_pauses() -> None:
    tier = ScriptedTier(busy(), busy(), busy())

    async def main() -> None:
        assert await get(tier) == b"good"

    run(main)
    pauses = [after - before for before, after in zip(tier.asked_s, tier.asked_s[1:], strict=False)]
    assert all(least <= pause <= 2 * least for pause, least in zip(pauses, (0.125, 0.25, 0.5), strict=True))


def test_attempts_end() -> None:
    tier = ScriptedTier(*[busy() for _ in range(50)])

    async def main() -> None:
        with pytest.raises(UnavailableError):
            await get(tier, attempts=4)

    run(main)
    assert len(tier.asked_s) == 4


def test_pauses_are_bounded() -> None:
    tier = ScriptedTier(*[busy() for _ in range(50)])

    async def main() -> float:
        with pytest.raises(UnavailableError):
            await get(tier, attempts=30)
        return trio.current_time() - tier.asked_s[0]

    assert run(main) < 30 * 30


def test_a_miss_is_an_answer() -> None:
    tier = ScriptedTier(False)

    async def main() -> None:
        assert await get(tier) is None

    run(main)
    assert len(tier.asked_s) == 1


@pytest.mark.parametrize("error", [NotFoundError("gone"), CredentialsError("who?")])
def test_what_trying_cannot_mend_is_not_tried_again(error: Exception) -> None:
    tier = ScriptedTier(error)

    async def main() -> None:
        with pytest.raises(type(error)):
            await get(tier)

    run(main)
    assert len(tier.asked_s) == 1


@pytest.mark.parametrize("kind", [IntegrityError, ChangedError])
def test_wrong_bytes_get_one_more_try(kind: type[IntegrityError]) -> None:
    once = ScriptedTier(kind("flipped"))
    twice = ScriptedTier(kind("flipped"), kind("flipped"))
    alone = ScriptedTier(kind("flipped"))

    async def main() -> None:
        assert await get(once) == b"good"
        for tier, attempts in ((twice, 5), (alone, 1)):
            with pytest.raises(kind):
                await get(tier, attempts)

    run(main)
    assert (len(once.asked_s), len(twice.asked_s), len(alone.asked_s)) == (2, 2, 1)


def test_retry_after_is_honoured_by_everyone_who_shares_the_pace() -> None:
    refused, other = ScriptedTier(busy(40.0)), ScriptedTier()

    async def main() -> float:
        pace = Pace(16)
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, refused, 5, pace)
            await trio.sleep(1)
            nursery.start_soon(get, other, 5, pace)
        return began_s

    began_s = run(main)
    assert refused.asked_s[1] - began_s >= 40
    assert other.asked_s[0] - began_s >= 40


def test_retry_after_in_a_year_is_for_a_person_to_hear() -> None:
    tier = ScriptedTier(busy(RETRY_AFTER_MAX_S + 1))

    async def main() -> float:
        with pytest.raises(UnavailableError) as refusal:
            await get(tier)
        assert refusal.value.retry_after_s == RETRY_AFTER_MAX_S + 1
        return trio.current_time() - tier.asked_s[0]

    assert run(main) < 1
    assert len(tier.asked_s) == 1


def test_retry_after_of_nothing_is_tried_again_soon() -> None:
    tier = ScriptedTier(busy(0.0))

    async def main() -> None:
        assert await get(tier) == b"good"

    run(main)
    assert tier.asked_s[1] - tier.asked_s[0] <= 0.25


def test_a_refusal_halves_and_successes_grow_back() -> None:
    async def main() -> None:
        pace = Pace(16)
        for expected in (8, 4, 2, 1, 1):
            await trio.sleep(1)
            pace.refused(0.0, trio.current_time())
            assert pace.slots.total_tokens == expected
        for _ in range(32 * 20):
            pace.succeeded()
        assert pace.slots.total_tokens == 16

    run(main)


def test_sixteen_refusals_at_once_halve_once() -> None:
    tiers = [ScriptedTier(busy(1.0), takes_s=0.1) for _ in range(16)]

    async def main() -> None:
        pace = Pace(16)
        async with trio.open_nursery() as nursery:
            for tier in tiers:
                nursery.start_soon(get, tier, 5, pace)
            await trio.sleep(0.5)
            assert pace.slots.total_tokens == 8

    run(main)


def test_a_failure_without_retry_after_does_not_slow_the_others() -> None:
    async def main() -> None:
        pace = Pace(16)
        assert await get(ScriptedTier(busy()), 5, pace) == b"good"
        assert pace.slots.total_tokens == 16

    run(main)


def test_waiting_can_be_cancelled() -> None:
    tier = ScriptedTier(busy(100.0))

    async def main() -> None:
        with trio.move_on_after(3) as scope:
            await get(tier)
        assert scope.cancelled_caught
        assert len(tier.asked_s) == 1

    run(main)


def test_anything_can_be_retried_so() -> None:
    answers = [busy(), busy()]

    async def once() -> str:
        if answers:
            raise answers.pop()
        return "done"

    async def main() -> None:
        assert await retrying(Pace(4), 3, once) == "done"

    run(main)
