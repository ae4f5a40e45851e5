"""Room: first come, first served; never more than there is; every wait ends."""

import pytest
import trio
import trio.testing

from bdnfs.core.errors import DeadlineError
from bdnfs.serve import room
from bdnfs.serve.room import Room


def test_nobody_is_overtaken_and_the_room_is_never_exceeded() -> None:
    order: list[int] = []
    held = most = 0

    async def take(found: Room, number: int, size: int) -> None:
        nonlocal held, most
        async with found.taken(size):
            order.append(number)
            held += size
            most = max(most, held)
            await trio.sleep(1)
            held -= size

    async def main() -> None:
        found = Room(10)
        async with trio.open_nursery() as nursery:
            for number, size in enumerate((6, 3, 9, 1, 2, 10, 1)):
                nursery.start_soon(take, found, number, size)
                await trio.testing.wait_all_tasks_blocked()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert order == list(range(7))
    assert most == 10


def test_what_is_larger_than_the_room_gets_all_of_it() -> None:
    async def main() -> None:
        found = Room(10)
        for _ in range(2):
            async with found.taken(1000):
                with trio.move_on_after(1) as waiting:
                    async with found.taken(1):
                        pass
                assert waiting.cancelled_caught
            async with found.taken(10):
                pass

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_wait_ends_and_takes_nothing() -> None:
    async def main() -> None:
        found = Room(10)
        async with found.taken(10):
            began_s = trio.current_time()
            with pytest.raises(DeadlineError, match="too many objects"):
                async with found.taken(1):
                    pass
            assert trio.current_time() - began_s == pytest.approx(room.WAIT_S)
        async with found.taken(10):
            pass

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
