"""Writeback that fails after the write: what was lost is never shown, and the error never passed over.

The cache's disk is a sparse file on a tmpfs that is full: a write to the file goes into memory and
succeeds, and fails only on its way to the disk. A read of such a place then finds zeros, and no error.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from bdnfs.cache.blobs import Blob
from bdnfs.core.errors import BdnfsError, CacheError, SpaceError
from bdnfs.core.ranges import CHUNK_BYTES
from benchmarks.servers.hub import HubServer
from tests.storage.contents import DELIVERY, FIELDS, NEW, check_trusted, goes_on, manifest_of, stocked
from tests.storage.disks import Disks, fill_up, tool
from tests.unit.cache.stocked import open_cache
from tests.unit.delivery.downloads import (
    Order,
    ended,
    fill,
    hub_origin,
    opened,
    read,
    start,
    upstream,
    within,
)

# Errors about the filesystem's own blocks come one by one, to whoever syncs next.
_TOLD_MAX = 4
MODEL = NEW["model.safetensors"]


class Thin:
    """A disk that says it has room; what lies below it has as much as is left there."""

    def __init__(self, disks: Disks) -> None:
        self.below = disks.tmpfs(150)
        self.image = Disks(self.below.at).image("ext4", 200, "-O", "^has_journal")
        self.disks = disks
        self.disk = disks.mount(self.image, "ext4", "errors=continue")
        self.cache = self.disk.at / "cache"
        self._filler: Path | None = None

    def fill_below(self, leave_bytes: int = 0) -> None:
        tool("sync", "-f", self.disk.at)
        self._filler = fill_up(self.below.at, leave_bytes)

    def room_below(self) -> None:
        assert self._filler is not None
        self._filler.unlink()

    def lose(self) -> None:
        """Let the writeback of everything fail, somebody else hear of it, and the memory be needed."""
        # Ends with an error or not: who asks first is told.
        subprocess.run(["sync", "-f", self.disk.at], check=False, capture_output=True, timeout=60)
        for path in (self.cache / "blobs").glob("*/*"):
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


@pytest.fixture
def thin(disks: Disks) -> Iterator[Thin]:
    made = Thin(disks)
    stocked(made.cache)
    yield made
    made.disk.unmount()
    made.below.unmount()


def soon_goes_on(thin: Thin, hub: HubServer, *, digests: bool = True) -> None:
    """With room below all is well again, at the latest when the filesystem has told all that it had lost."""
    for _ in range(_TOLD_MAX):
        try:
            goes_on(thin.cache, hub, None, digests=digests)
        except (CacheError, SpaceError) as error:
            said = error
        else:
            return
    raise said


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "none"])
def test_a_fill_whose_bytes_do_not_reach_the_disk_fails_and_goes_on_later(
    thin: Thin, hub: HubServer, digests: bool
) -> None:
    thin.fill_below(leave_bytes=5 << 20)
    cache = open_cache(thin.cache, **FIELDS)
    origin = hub_origin(hub.url)
    with pytest.raises((CacheError, SpaceError), match="can't be synced"):
        fill(cache, manifest_of(origin, digests=digests), origin, **DELIVERY)
    check_trusted(cache)
    cache.close()
    origin.close()
    thin.lose()
    thin.room_below()
    soon_goes_on(thin, hub, digests=digests)


def test_a_sync_hears_of_an_error_that_somebody_else_asked_about_meanwhile(
    thin: Thin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of a write error once for each descriptor: who else asks must have one of their own."""
    thin.fill_below()
    blob = Blob(thin.cache / "blobs" / "ab" / ("ab" * 32), b"\xab" * 32, CHUNK_BYTES, writable=True)
    blob.write(0, memoryview(os.urandom(CHUNK_BYTES)))
    fsync, asked = os.fsync, list[bool]()

    def slow(fd: int) -> None:
        subprocess.run(["sync", "-f", thin.disk.at], check=False, capture_output=True, timeout=60)
        asked.append(blob.has_lost())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    with pytest.raises((CacheError, SpaceError), match="can't be synced"):
        blob.sync()
    assert asked == [True]
    monkeypatch.undo()
    with pytest.raises((CacheError, SpaceError), match="can't be synced"):
        blob.sync()
    blob.close()
    thin.room_below()


def test_what_a_dead_writer_left_in_memory_only_is_fetched_again(
    thin: Thin, hub: HubServer, tmp_path: Path
) -> None:
    thin.fill_below(leave_bytes=2 << 20)
    order = Order(
        hub.url,
        thin.cache,
        "chunk:committed",
        1,
        tmp_path / "steps",
        FIELDS,
        {"config": upstream(fetches_max=2)},
    )
    assert ended(start(order)) == -signal.SIGKILL
    thin.lose()
    thin.room_below()
    soon_goes_on(thin, hub)


def test_a_reader_never_sees_what_was_lost_on_the_way_to_the_disk(thin: Thin, hub: HubServer) -> None:
    """The chunk is there, its writer lives, nobody has synced it yet, and the disk has zeros."""
    cache = open_cache(thin.cache, **FIELDS)
    origin = hub_origin(hub.url)
    manifest = manifest_of(origin)

    async def main() -> list[bytes | BdnfsError]:
        found: list[bytes | BdnfsError] = []
        async with opened(cache, manifest, origin, sync_bytes=1 << 40) as delivery:
            for part in range(2):
                place = part * CHUNK_BYTES + 4096
                assert (
                    await read(delivery, "model.safetensors", place, place + 100)
                    == MODEL[place : place + 100]
                )
            await trio.to_thread.run_sync(thin.lose)
            for place in (8192, CHUNK_BYTES - 50, CHUNK_BYTES + 8192):
                try:
                    got: bytes | BdnfsError = await read(delivery, "model.safetensors", place, place + 4097)
                    assert got == MODEL[place : place + 4097], f"wrong bytes at {place}"
                except BdnfsError as error:
                    got = error
                found.append(got)
        return found

    thin.fill_below(leave_bytes=1 << 20)
    found = within(main)
    assert any(isinstance(each, BdnfsError) for each in found)
    check_trusted(cache)
    cache.close()
    origin.close()
    thin.room_below()
    soon_goes_on(thin, hub)
