"""The power goes while a directory is written: what has a name is whole and has its type, what was flushed is there.

As tests/storage/test_power.py has it: a clone of the disk's file has what reached the disk, and nothing else.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdnfs.core.steps import on_step
from bdnfs.mirror.directory import DirectoryStore
from tests.storage.disks import Disks
from tests.storage.test_power import SIZE_MIB, clone, host
from tests.unit.cache.stocked import content

__all__ = ["host"]

CHUNK = "application/vnd.baseten.bdn.chunk.v1"
OBJECTS = {
    f"bdn/{number % 3}/{number}": content(f"object {number}", 1 + 70_001 * number) for number in range(8)
}


@contextlib.contextmanager
def cutting(image: Path, cuts: Path) -> Iterator[None]:
    """Clone the disk at each step of a put."""

    def cut(step: str) -> None:
        clone(image, cuts / f"{len(list(cuts.iterdir())):03}-{step.replace(':', '-')}")

    on_step(cut)
    try:
        yield
    finally:
        on_step(None)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_what_has_a_name_after_a_power_cut_is_whole(host: Disks, tmp_path: Path, kind: str) -> None:
    image = host.image(kind, SIZE_MIB)
    disk = host.mount(image, kind)
    cuts = host.place / f"{image.name}.cuts"
    cuts.mkdir()
    store = DirectoryStore(str(disk.at / "mirror"))
    with cutting(image, cuts):
        for key, data in OBJECTS.items():
            assert store.put(key, data, CHUNK, "absent")
    store.flush()
    clone(image, cuts / "flushed")
    store.close()
    disk.unmount()

    most = 0
    for cut in [*sorted(cuts.iterdir())[2::3], cuts / "flushed"]:
        again = host.mount(cut, kind)
        store = DirectoryStore(str(again.at / "mirror"))
        there = [each.key for each in store.list("")] if (again.at / "mirror").exists() else []
        for key in there:
            assert store.get(key, 1 << 20)[:2] == (OBJECTS[key], CHUNK)
        for key, data in OBJECTS.items():
            assert store.put(key, data, CHUNK, "absent") is (key not in there)
        store.close()
        again.unmount()
        most = max(most, len(there)) if cut.name != "flushed" else most
        assert cut.name != "flushed" or sorted(there) == sorted(OBJECTS)
    # Names reach the disk with the syncs of those that come after them.
    assert most > 0
