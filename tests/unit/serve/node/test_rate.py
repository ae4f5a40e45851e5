"""No more than the rate, no waiting for long; by trio's clock alone."""

import trio
import trio.testing

from bdnfs.serve.node.rate import Rate


def test_what_is_let_through_is_the_rate_and_a_burst() -> None:
    async def main() -> list[float]:
        rate, sent = Rate(1_000_000), list[float]()

        async def ask() -> None:
            while trio.current_time() - began < 20:
                if await rate.take(100_000):
                    sent.append(trio.current_time() - began)
                else:
                    assert rate.retry_after_s() >= 1
                    await trio.sleep(0.1)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
        return sent

    sent = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    for until_s in (1, 5, 10, 20):
        size = 100_000 * sum(each <= until_s for each in sent)
        assert 0.8e6 * until_s <= size <= 1e6 * (until_s + 0.25) + 100_000, until_s


def test_a_chunk_larger_than_a_second_of_the_rate_still_goes() -> None:
    async def main() -> None:
        rate = Rate(1_000_000)
        assert await rate.take(8_000_000)
        assert rate.wait_s() is None
        assert not await rate.take(8_000_000)
        assert rate.retry_after_s() == 8
        await trio.sleep(8)
        assert await rate.take(8_000_000)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_without_a_rate_nobody_waits() -> None:
    async def main() -> None:
        rate = Rate(None)
        began = trio.current_time()
        for _ in range(1000):
            assert await rate.take(8_000_000)
        assert trio.current_time() == began
        rate.change(1)
        assert await rate.take(100)
        assert not await rate.take(100)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
