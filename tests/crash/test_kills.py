"""Killed between every pair of write steps: the next one goes on, and nothing is lost or left.

A child fills a new snapshot into a full cache, so that an old one has to go; it kills itself when a
step is reached. Whoever comes next finds what the index says to be true, and finishes.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.steps import STEPS
from bdnfs.core.units import MIB
from benchmarks.servers.hub import HubServer
from tests.crash.test_commands import KILLED as KILLED_AS_COMMANDS
from tests.crash.test_import import STEPS as KILLED_IMPORTING
from tests.crash.test_ingest import STEPS as KILLED_INGESTING
from tests.mirror.test_directory_store import STEPS as KILLED_IN_A_STORE
from tests.unit.cache.stocked import (
    check_books,
    content,
    disk_bytes,
    open_cache,
    orphans,
    shown,
    stock,
)
from tests.unit.delivery.downloads import (
    REPO,
    Order,
    children,
    ended,
    fill,
    hub_origin,
    listed,
    start,
    upstream,
)

OLD = {"old.bin": content("old", 3 * MIB), "older.bin": content("older", 2 * MIB)}
NEW = {
    "config.json": b'{"new": true}',
    "empty.txt": b"",
    "model.safetensors": content("new", 2 * CHUNK_BYTES + 4097),
    "sub/same.safetensors": content("same", MIB),
    "sub/dir/same.safetensors": content("same", MIB),
}
NEW_BYTES = sum(map(len, NEW.values())) - MIB
# Hardly more than the new one: the old one has to go.
CAPACITY_BYTES = NEW_BYTES + 3 * MIB
FIELDS = {"capacity_bytes": CAPACITY_BYTES}
# One chunk in flight: no more than that may be fetched twice.
DELIVERY = {"sync_bytes": CHUNK_BYTES // 2, "config": upstream(fetches_max=1)}

# What a fill into a full cache passes; the other steps are killed at below, and in test_commands.py.
FILL = (
    *(step for step in STEPS if step.partition(":")[0] in ("admit", "sync", "tree", "evict")),
    "chunk:written",
    "chunk:committed",
    "blob:verified",
    "blob:sealed",
    "blob:committed",
    "snapshot:committed",
    "index:committing",
    "index:committed",
)
ADOPTING = "chunk:rehashed"
WINDOW = "window:punched"
# A step that is passed more than once is another place each time.
AFTER = {
    "chunk:written": (0, 2),
    "chunk:committed": (0, 3),
    "blob:verified": (0, 2),
    "blob:committed": (0, 1),
    "index:committing": (0, 2, 5),
    "index:committed": (0, 3, 6),
}
KILLS = [(step, after) for step in FILL for after in AFTER.get(step, (0,))]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        hub.commit(REPO, NEW)
        yield hub


def stocked(directory: Path) -> str:
    cache = open_cache(directory, **FIELDS)
    old = stock(cache, OLD, "0" * 40)
    cache.close()
    return old


def order(hub: HubServer, directory: Path, kill_at: str = "", after: int = 0) -> Order:
    return Order(hub.url, directory, kill_at, after, directory.parent / "steps", FIELDS, DELIVERY)


def check_after_a_kill(directory: Path, old: str) -> None:
    """What the index says is there is there, and the old snapshot is whole or not, never half."""
    cache = open_cache(directory, **FIELDS)
    try:
        check_books(cache)
        for blob, row in cache.blobs():
            if row.present:
                assert cache.verify_blob(blob) is None
        pin = cache.pin(old)
        tree = cache.whole_tree(old)
        assert tree is None or shown(tree) == OLD
        pin.close()
    finally:
        cache.close()


@pytest.mark.parametrize(("step", "after"), KILLS)
def test_the_next_goes_on(hub: HubServer, tmp_path: Path, step: str, after: int) -> None:
    directory = tmp_path / "cache"
    old = stocked(directory)
    hub.reset()
    assert ended(start(order(hub, directory, step, after))) == -signal.SIGKILL
    assert (tmp_path / "steps").read_text().split()[-1] == step
    check_after_a_kill(directory, old)

    cache = open_cache(directory, **FIELDS)
    origin = hub_origin(hub.url)
    tree = fill(cache, listed(origin), origin, **DELIVERY)
    origin.close()
    assert shown(tree) == NEW
    again_bytes = hub.bytes_sent - NEW_BYTES
    assert 0 <= again_bytes <= CHUNK_BYTES
    check_books(cache)
    usage = cache.usage()
    assert usage.charged_bytes == usage.present_bytes
    assert disk_bytes(cache.layout.blobs) <= usage.present_bytes + 8 * 4096
    assert not orphans(cache)
    assert [path.name for path in cache.layout.writers.iterdir()] in ([], [cache.writer.hex()])
    cache.close()


def test_every_step_is_reached(hub: HubServer, tmp_path: Path) -> None:
    """What a fill passes is what it is killed at."""
    stocked(tmp_path / "cache")
    assert ended(start(order(hub, tmp_path / "cache"))) == 0
    reached = (tmp_path / "steps").read_text().split()
    assert set(reached) == set(FILL)
    for step, counts in AFTER.items():
        assert reached.count(step) > max(counts), step


def test_every_named_step_is_killed_at() -> None:
    """The list of steps can't grow without a kill at the new one."""
    assert {
        *FILL,
        ADOPTING,
        WINDOW,
        *KILLED_IMPORTING,
        *KILLED_INGESTING,
        *KILLED_IN_A_STORE,
    } | KILLED_AS_COMMANDS == set(STEPS)


def test_a_kill_while_a_dead_ones_chunk_is_rehashed(hub: HubServer, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    assert ended(start(order(hub, directory, "chunk:committed", 2))) == -signal.SIGKILL
    assert ended(start(order(hub, directory, ADOPTING))) == -signal.SIGKILL
    assert (tmp_path / "steps").read_text().split()[-1] == ADOPTING
    hub.reset()
    cache = open_cache(directory, **FIELDS)
    origin = hub_origin(hub.url)
    assert shown(fill(cache, listed(origin), origin, **DELIVERY)) == NEW
    origin.close()
    check_books(cache)
    assert hub.bytes_sent < NEW_BYTES  # what had been brought was kept
    cache.close()


def evict_and_die(directory: str, kill_at: str) -> None:
    import os

    from bdnfs.core.steps import on_step

    cache = open_cache(Path(directory))
    on_step(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == kill_at else None)
    cache.evict(unused_since_s=float("inf"), dry_run=False)


@pytest.mark.parametrize("step", [step for step in STEPS if step.startswith("evict:")])
def test_an_eviction_that_was_killed_is_done_or_not(tmp_path: Path, step: str) -> None:
    directory = tmp_path / "cache"
    old = stocked(directory)
    child = children.Process(target=evict_and_die, args=(str(directory), step))
    child.start()
    assert ended(child) == -signal.SIGKILL
    check_after_a_kill(directory, old)
    cache = open_cache(directory)
    cache.evict(unused_since_s=0, dry_run=False)  # sweeps, and finds nothing old enough
    assert not orphans(cache)
    tree = cache.whole_tree(old)
    assert (tree is None) == (step != "evict:tree-renamed")
    cache.evict(unused_since_s=float("inf"), dry_run=False)
    assert not disk_bytes(cache.layout.blobs)
    cache.close()


def read_window_and_die(url: str, directory: str, kill_at: str) -> None:
    import os

    import trio

    from bdnfs.core.steps import on_step
    from tests.unit.delivery.downloads import opened, read

    cache = open_cache(Path(directory), capacity_bytes=2 * CHUNK_BYTES)
    origin = hub_origin(url)
    manifest = listed(origin)
    on_step(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == kill_at else None)

    async def main() -> None:
        async with opened(cache, manifest, origin, window=True) as delivery:
            for start in (0, CHUNK_BYTES - 4097, CHUNK_BYTES, 0):
                await read(delivery, "model.safetensors", start, start + 4097)
            if kill_at:  # the third chunk takes the place of one of two
                await read(delivery, "model.safetensors", 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 4097)
                raise AssertionError(f"{kill_at} was not reached")
            os.kill(os.getpid(), signal.SIGKILL)

    trio.run(main)


@pytest.mark.parametrize("kill_at", ["", WINDOW])
def test_a_window_that_was_killed_leaves_nothing(hub: HubServer, tmp_path: Path, kill_at: str) -> None:
    directory = tmp_path / "cache"
    child = children.Process(target=read_window_and_die, args=(hub.url, str(directory), kill_at))
    child.start()
    assert ended(child) == -signal.SIGKILL
    cache = open_cache(directory, capacity_bytes=2 * CHUNK_BYTES)
    check_books(cache)
    assert cache.usage().present_bytes
    assert stock(cache, {"next": content("next", 2 * CHUNK_BYTES)})
    check_books(cache)
    assert not orphans(cache)
    assert disk_bytes(cache.layout.blobs) == 2 * CHUNK_BYTES
    cache.close()
