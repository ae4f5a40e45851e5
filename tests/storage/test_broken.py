"""Disks that fail: reads that end in an error, no inode left, nothing that may be written."""

import os
from pathlib import Path

import pytest

from bdnfs.core.errors import CacheError, SpaceError
from bdnfs.core.ranges import CHUNK_BYTES
from benchmarks.servers.hub import HubServer
from tests.storage.contents import DELIVERY, FIELDS, NEW, check_trusted, goes_on, manifest_of
from tests.storage.disks import Disks, Mounted, break_off
from tests.unit.cache.stocked import open_cache, shown
from tests.unit.cache.test_full_disk import use_inodes
from tests.unit.delivery.downloads import fill, hub_origin, opened, read, within


def filled(directory: Path, hub: HubServer) -> str:
    """Fill a cache; return the snapshot's id."""
    cache = open_cache(directory, **FIELDS)
    origin = hub_origin(hub.url)
    tree = fill(cache, manifest_of(origin), origin, **DELIVERY)
    origin.close()
    cache.close()
    return tree.name


def largest(disk: Mounted) -> Path:
    return max((disk.at / "cache" / "blobs").glob("*/*"), key=lambda path: path.stat().st_size)


def test_what_can_not_be_read_is_found_and_fetched_again(disks: Disks, hub: HubServer) -> None:
    image = disks.image("ext4", 200, "-O", "^has_journal")
    disk = disks.mount_failing(image, "ext4")
    try:
        snapshot = filled(disk.at / "cache", hub)
        model = largest(disk)
        break_off(image, model)
        with pytest.raises(OSError, match="Input/output error"):
            model.read_bytes()
        cache = open_cache(disk.at / "cache", **FIELDS)
        assert "is not what was written" in (cache.verify_blob(bytes.fromhex(model.name)) or "")
        assert cache.whole_tree(snapshot) is None
        cache.close()
        with image.open("r+b") as file:
            file.truncate(200 << 20)  # the sectors were replaced: they read as zeros
        goes_on(disk.at / "cache", hub, None)
    finally:
        disk.unmount()


def test_a_reader_of_what_can_not_be_read_gets_an_error(disks: Disks, hub: HubServer) -> None:
    image = disks.image("ext4", 200, "-O", "^has_journal")
    disk = disks.mount_failing(image, "ext4")
    cache = open_cache(disk.at / "cache", **FIELDS)
    origin = hub_origin(hub.url)
    manifest = manifest_of(origin)

    async def main() -> None:
        async with opened(cache, manifest, origin) as delivery:
            model = NEW["model.safetensors"]
            assert await read(delivery, "model.safetensors", 0, 4096) == model[:4096]
            assert (
                await read(delivery, "model.safetensors", CHUNK_BYTES, CHUNK_BYTES + 9)
                == model[CHUNK_BYTES:][:9]
            )
            break_off(image, largest(disk))
            with pytest.raises(CacheError, match=r"can't be read .*check the disk"):
                await read(delivery, "model.safetensors", 4 << 20, (4 << 20) + 4096)

    try:
        within(main)
    finally:
        cache.close()
        origin.close()
        disk.unmount()


@pytest.mark.parametrize("free", [0, 6, 12, 18, 21, 24])
def test_inodes_used_up_at_any_point(disks: Disks, hub: HubServer, free: int) -> None:
    """So few are left that the cache's directories, the fill or the tree has none."""
    disk = disks.mount(disks.image("ext4", 96, "-N", "512"), "ext4")
    try:
        use_inodes(disk.at)
        files = list((disk.at / "files").iterdir())
        for path in files[:free]:
            path.unlink()
        with pytest.raises(SpaceError, match=r"inodes|no room"):
            filled(disk.at / "cache", hub)
        if (disk.at / "cache" / "index.lmdb").exists():
            cache = open_cache(disk.at / "cache", **FIELDS)
            check_trusted(cache)
            cache.close()
        for path in files[free:]:
            path.unlink()
        goes_on(disk.at / "cache", hub, None)
    finally:
        disk.unmount()


def test_a_cache_that_turns_read_only_says_so_and_goes_on_later(disks: Disks, hub: HubServer) -> None:
    disk = disks.mount(disks.image("ext4", 96), "ext4")
    try:
        filled(disk.at / "cache", hub)
        disk.remount("ro")
        with pytest.raises(CacheError, match=r"(?i)read-only"):
            filled(disk.at / "cache", hub)
        disk.remount("rw")
        cache = open_cache(disk.at / "cache", **FIELDS)
        (held,) = cache.holdings()
        tree = cache.whole_tree(held.snapshot_id)
        assert tree is not None
        assert shown(tree) == NEW
        cache.close()
    finally:
        disk.unmount()


def test_a_disk_that_turns_read_only_under_a_fill(disks: Disks, hub: HubServer) -> None:
    """As ext4 and xfs do when they find themselves damaged."""
    disk = disks.mount(disks.image("ext4", 96), "ext4", "errors=remount-ro")
    cache = open_cache(disk.at / "cache", **FIELDS)
    origin = hub_origin(hub.url)
    try:
        # The way of errors=remount-ro: what is open for writing does not hinder it.
        (Path("/sys/fs/ext4") / device_of(disk) / "trigger_fs_error").write_text("1")
        with pytest.raises(CacheError, match=r"(?i)read-only"):
            fill(cache, manifest_of(origin), origin, **DELIVERY)
    finally:
        cache.close()
        origin.close()
        disk.unmount()


def device_of(disk: Mounted) -> str:
    number = disk.at.stat().st_dev
    return Path(os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")).name
