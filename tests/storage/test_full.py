"""The disk is full from some moment on: at each step of a fill, and at any size. Nothing is lost by it."""

import random
from collections.abc import Iterator

import pytest

from bdnfs.core.errors import SpaceError
from bdnfs.core.steps import on_step
from bdnfs.core.units import MIB
from benchmarks.servers.hub import HubServer
from tests.crash.test_kills import FILL
from tests.storage.contents import DELIVERY, FIELDS, NEW, check_trusted, goes_on, manifest_of, stocked
from tests.storage.disks import Disks, Mounted, fill_up
from tests.unit.cache.stocked import open_cache, shown
from tests.unit.delivery.downloads import fill, hub_origin

SIZE_MIB = 96
# Before the record is committed, in a chunk, in a seal, in the tree: each fails in another place.
OFTEN = ("admit:record-written", "chunk:written", "blob:sealed", "tree:linked", "index:committed")
SEED = 20261121


@pytest.fixture
def disk(disks: Disks) -> Iterator[Mounted]:
    mounted = disks.mount(disks.image("ext4", SIZE_MIB), "ext4")
    yield mounted
    mounted.unmount()


def try_to_fill(disk: Mounted, hub: HubServer) -> bool:
    """Fill; return whether there was room, and check that what is there is right if there wasn't."""
    cache = open_cache(disk.at / "cache", **FIELDS)
    origin = hub_origin(hub.url)
    try:
        assert shown(fill(cache, manifest_of(origin), origin, **DELIVERY)) == NEW
    except SpaceError:
        return False
    finally:
        on_step(None)
        check_trusted(cache)
        origin.close()
        cache.close()
    return True


@pytest.mark.parametrize(
    "step", [*OFTEN, *(pytest.param(step, marks=pytest.mark.long) for step in FILL if step not in OFTEN)]
)
def test_a_disk_that_is_full_from_a_step_on(disk: Mounted, hub: HubServer, step: str) -> None:
    old = stocked(disk.at / "cache")
    reached = []

    def fill_disk(found: str) -> None:
        if found == step and not reached:
            reached.append(found)
            fill_up(disk.at)

    on_step(fill_disk)
    try_to_fill(disk, hub)
    assert reached
    assert not try_to_fill(disk, hub) or step not in ("chunk:written", "admit:committed")
    (disk.at / "filler").unlink()
    goes_on(disk.at / "cache", hub, old)


def test_a_disk_of_any_size(disk: Mounted, hub: HubServer) -> None:
    """Room for a little more each time: whichever write is the one that fails, the next goes on from there."""
    stocked(disk.at / "cache")
    filler = fill_up(disk.at)
    dice = random.Random(SEED)
    refusals = 0
    while not try_to_fill(disk, hub):
        refusals += 1
        assert filler.stat().st_size, f"seed {SEED}: it does not fit an empty disk"
        with filler.open("r+b") as file:
            file.truncate(max(0, filler.stat().st_size - dice.randrange(4096, 5 * MIB)))
    assert refusals > 2, f"seed {SEED}"
