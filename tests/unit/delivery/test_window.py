"""`--no-fill`: more is read than fits; what fits is never passed, and nothing stays."""

import random
from collections.abc import Callable

import pytest
import trio

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import SpaceError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.units import MIB
from bdnfs.delivery.delivery import Delivery
from bdnfs.origins.base import Origin
from benchmarks.servers.hub import HubServer
from tests.unit.cache.stocked import check_books, content, disk_bytes, orphans, stock
from tests.unit.delivery.downloads import REPO, fill, listed, opened, read, upstream, within

Opened = Callable[..., NodeCache]
BIG = content("big", 6 * CHUNK_BYTES + 4097)
FILES = {"big.bin": BIG, "small.json": b"{}", "empty": b"", "other.bin": content("other", CHUNK_BYTES + 1)}
SLACK_BYTES = 64 * 1024  # blocks of files, not of chunks


def test_random_readers_get_the_right_bytes_and_the_capacity_is_never_passed(
    hub: HubServer, origin: Origin, opened_caches: Opened
) -> None:
    cache = opened_caches(capacity_bytes=2 * CHUNK_BYTES + 5)
    hub.commit(REPO, FILES)
    manifest = listed(origin)
    dice = random.Random(1)
    most_bytes = 0

    async def main() -> None:
        nonlocal most_bytes
        async with opened(cache, manifest, origin, upstream(fetches_max=8), window=True) as delivery:

            async def reader(seed: int) -> None:
                mine = random.Random(seed)
                for _ in range(12):
                    path = mine.choice(sorted(FILES))
                    start = mine.randint(0, len(FILES[path]))
                    # Many of them over a chunk's edge.
                    if path == "big.bin" and mine.random() < 0.5:
                        start = mine.randint(1, 5) * CHUNK_BYTES - mine.randint(1, 100)
                    stop = min(len(FILES[path]), start + mine.choice((1, 200, 131072)))
                    assert await read(delivery, path, start, stop) == FILES[path][start:stop]

            async def watcher() -> None:
                nonlocal most_bytes
                while True:
                    used = await trio.to_thread.run_sync(disk_bytes, cache.layout.blobs)
                    charged = (await trio.to_thread.run_sync(cache.usage)).charged_bytes
                    most_bytes = max(most_bytes, used - SLACK_BYTES, charged)
                    await trio.sleep(0.005)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watcher)
                async with trio.open_nursery() as readers:
                    for _ in range(8):
                        readers.start_soon(reader, dice.randint(0, 1 << 30))
                nursery.cancel_scope.cancel()
            check_books(cache)

    within(main)
    assert CHUNK_BYTES < most_bytes <= 2 * CHUNK_BYTES + 5
    assert cache.usage().charged_bytes == 0
    assert not orphans(cache)
    assert not disk_bytes(cache.layout.blobs)


def test_readers_over_an_edge_do_not_starve_each_other(
    hub: HubServer, origin: Origin, opened_caches: Opened
) -> None:
    """Each wants two chunks, and there is room for one."""
    cache = opened_caches(capacity_bytes=CHUNK_BYTES)
    hub.commit(REPO, FILES)
    manifest = listed(origin)

    async def main() -> None:
        async with opened(cache, manifest, origin, window=True) as delivery, trio.open_nursery() as nursery:

            async def reader(edge: int) -> None:
                start, stop = edge * CHUNK_BYTES - 3, edge * CHUNK_BYTES + 3
                assert await read(delivery, "big.bin", start, stop) == BIG[start:stop]

            for edge in (1, 2, 3, 1, 2, 3):
                nursery.start_soon(reader, edge)

    within(main)


def test_without_room_for_one_chunk_nothing_is_opened(
    hub: HubServer, origin: Origin, opened_caches: Opened
) -> None:
    cache = opened_caches(capacity_bytes=10 * MIB)
    stock(cache, {"held": content("held", 9 * MIB)}, keep=True)
    hub.commit(REPO, FILES)
    manifest = listed(origin)

    async def main() -> None:
        async with opened(cache, manifest, origin, window=True):
            pass

    with pytest.raises(SpaceError, match=r"needs 8 MiB more .*pinned"):
        within(main)
    assert cache.usage().charged_bytes == 9 * MIB
    assert len(cache.holdings()) == 1


def test_a_window_goes_on_while_another_has_all_the_rest(
    hub: HubServer, origin: Origin, opened_caches: Opened
) -> None:
    cache = opened_caches(capacity_bytes=3 * CHUNK_BYTES)
    hub.commit(REPO, FILES)
    manifest = listed(origin)

    async def main() -> None:
        async with (
            opened(cache, manifest, origin, window=True) as greedy,
            opened(cache, manifest, origin, window=True) as late,
        ):
            assert await read(greedy, "big.bin", 0, 6 * CHUNK_BYTES) == BIG[: 6 * CHUNK_BYTES]
            assert cache.usage().charged_bytes == 3 * CHUNK_BYTES
            for path in ("other.bin", "big.bin", "small.json"):
                assert await read(late, path) == FILES[path]
                check_books(cache)

    within(main)
    assert cache.usage().charged_bytes == 0


def test_a_window_takes_a_snapshots_room_once_and_then_its_own(
    hub: HubServer, origin: Origin, opened_caches: Opened
) -> None:
    cache = opened_caches(capacity_bytes=40 * MIB)
    ids = [stock(cache, {name: content(name, 13 * MIB)}, name * 40) for name in ("1", "2", "3")]
    hub.commit(REPO, FILES)
    manifest = listed(origin)

    async def main() -> None:
        async with opened(cache, manifest, origin, window=True) as delivery:
            assert await read(delivery, "big.bin") == BIG

    within(main)
    assert [cache.whole_tree(snapshot) is not None for snapshot in ids] == [False, True, True]


def test_what_is_whole_here_is_read_from_there(hub: HubServer, origin: Origin, opened_caches: Opened) -> None:
    cache = opened_caches(capacity_bytes=CHUNK_BYTES + 2 * MIB)
    hub.commit(REPO, {"shared.bin": content("shared", MIB)})
    tree = fill(cache, listed(origin), origin)
    hub.commit(REPO, {**FILES, "shared.bin": content("shared", MIB)})
    manifest = listed(origin)
    hub.reset()

    async def main() -> None:
        async with opened(cache, manifest, origin, window=True) as delivery:
            assert await read(delivery, "shared.bin") == content("shared", MIB)
            assert hub.bytes_sent == 0
            assert await read(delivery, "big.bin", 0, 2 * CHUNK_BYTES) == BIG[: 2 * CHUNK_BYTES]
            # Its own, not the shared one, were taken back for that.
            assert await read(delivery, "shared.bin") == content("shared", MIB)

    within(main)
    assert tree.exists()
    assert cache.usage().present_bytes == MIB
    check_books(cache)


def test_two_windows_on_one_snapshot_have_nothing_in_common(
    hub: HubServer, origin: Origin, opened_caches: Opened
) -> None:
    cache = opened_caches(capacity_bytes=3 * CHUNK_BYTES)
    hub.commit(REPO, FILES)
    manifest = listed(origin)

    async def main() -> None:
        async def reader(delivery: Delivery) -> None:
            assert await read(delivery, "big.bin") == BIG

        async with (
            opened(cache, manifest, origin, window=True) as one,
            opened(cache, manifest, origin, window=True) as two,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(reader, one)
            nursery.start_soon(reader, two)

    within(main)
    assert cache.usage().charged_bytes == 0
    assert not orphans(cache)


def test_a_fetch_that_fails_gives_its_room_back(
    hub: HubServer, origin: Origin, opened_caches: Opened
) -> None:
    cache = opened_caches(capacity_bytes=CHUNK_BYTES)
    hub.commit(REPO, FILES)
    manifest = listed(origin)

    async def main() -> None:
        async with opened(cache, manifest, origin, upstream(attempts=1), window=True) as delivery:
            for _ in range(3):
                hub.faults.add(status=500, times=1)
                with pytest.raises(Exception, match="500"):
                    await read(delivery, "big.bin", 0, 10)
            assert cache.usage().charged_bytes == CHUNK_BYTES  # the floor
            assert await read(delivery, "big.bin", 0, 10) == BIG[:10]

    within(main)
