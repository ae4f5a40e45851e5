"""The power goes: what had not been synced is lost, and everything that is trusted afterwards is right.

The cache's disk is a file on a loop device, and that file lies on a filesystem that clones it in one
moment. A clone has what reached the disk and nothing of what was in memory only: it is what a machine
finds when it starts again. One run is cut at all its steps, and at moments that nobody chose.
"""

import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdnfs.core.steps import on_step
from benchmarks.servers.hub import HubServer
from tests.storage.contents import DELIVERY, FIELDS, goes_on, manifest_of, stocked
from tests.storage.disks import Disks, Mounted
from tests.unit.cache.stocked import open_cache
from tests.unit.delivery.downloads import children, ended, fill, hub_origin

SIZE_MIB = 320
CUTS = 6  # of each run, chosen by the seed; --long looks at all of them
SEEDS = [11, 12]


@pytest.fixture(scope="module")
def host(disks: Disks) -> Iterator[Disks]:
    """Disks whose files can be cloned."""
    mounted = disks.mount(disks.image("xfs", 4096), "xfs")
    made = Disks(mounted.at)
    yield made
    made.close()


def clone(image: Path, to: Path) -> None:
    # Nothing writes to the file meanwhile (ioctl_ficlone(2) on XFS holds its lock).
    subprocess.run(["cp", "--reflink=always", str(image), str(to)], check=True, timeout=60)


def fill_and_be_cut(url: str, image: str, directory: str, cuts: str, *, digests: bool) -> None:
    """The child: fill, and clone the disk at each step."""
    turn = threading.Lock()

    def cut(step: str) -> None:
        with turn:
            number = len(list(Path(cuts).iterdir()))
            clone(Path(image), Path(cuts) / f"{number:03}-{step.replace(':', '-')}")

    cache = open_cache(Path(directory), **FIELDS)
    origin = hub_origin(url)
    manifest = manifest_of(origin, digests=digests)
    on_step(cut)
    fill(cache, manifest, origin, **DELIVERY)
    on_step(None)
    origin.close()
    cache.close()


def cut_while_filling(
    host: Disks, disk: Mounted, image: Path, hub: HubServer, *, digests: bool
) -> list[Path]:
    cuts = host.place / f"{image.name}.cuts"
    cuts.mkdir()
    arguments = (hub.url, str(image), str(disk.at / "cache"), str(cuts))
    child = children.Process(target=fill_and_be_cut, args=arguments, kwargs={"digests": digests})
    child.start()
    assert ended(child, 100) == 0
    disk.unmount()
    return sorted(cuts.iterdir())


@pytest.mark.parametrize(
    ("kind", "digests"), [("ext4", True), ("ext4", False), ("xfs", False), ("btrfs", False)]
)
def test_what_is_trusted_after_a_power_cut_is_right(
    host: Disks, hub: HubServer, kind: str, digests: bool, request: pytest.FixtureRequest
) -> None:
    image = host.image(kind, SIZE_MIB)
    disk = host.mount(image, kind)
    old = stocked(disk.at / "cache")
    cuts = cut_while_filling(host, disk, image, hub, digests=digests)
    assert len(cuts) > 30
    seed = SEEDS[digests]
    chosen = cuts if request.config.getoption("--long") else random.Random(seed).sample(cuts, CUTS)
    for cut in sorted(chosen):
        again = host.mount(cut, kind)
        try:
            goes_on(again.at / "cache", hub, old, digests=digests)
        except BaseException as error:
            error.add_note(f"{kind}, seed {seed}, cut at {cut.name}")
            raise
        finally:
            again.unmount()
