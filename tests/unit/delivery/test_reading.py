"""Reads and fills in one process: each chunk asked for once, what is wanted now first, never wrong bytes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import CacheError, IntegrityError, UnavailableError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.delivery.delivery import open_delivery
from bdnfs.delivery.progress import Progress
from bdnfs.delivery.resolve import Admitted
from bdnfs.origins.base import Origin
from bdnfs.tiers.base import Chunk
from benchmarks.servers.hub import HubServer
from tests.unit.cache.stocked import SELECTION, check_books, content, orphans, shown
from tests.unit.delivery.downloads import REPO, fill, listed, opened, read, upstream, within

MODEL = content("model", 3 * CHUNK_BYTES + 4097)
FILES = {"config.json": b"{}", "empty.txt": b"", "model.safetensors": MODEL}


def chunks_asked_for(hub: HubServer) -> list[str]:
    """Return the ranges of file contents that were sent."""
    return [str(request.range) for request in hub.requests if request.method == "GET" and request.range]


def test_a_fill_brings_everything_once(hub: HubServer, origin: Origin, cache: NodeCache) -> None:
    hub.commit(REPO, FILES)
    manifest = listed(origin)
    hub.reset()
    progress = Progress()
    assert shown(fill(cache, manifest, origin, progress)) == FILES
    assert hub.bytes_sent == manifest.total_bytes == progress.upstream_bytes == progress.present_bytes
    assert progress.files_whole == progress.files == 3
    hub.reset()
    progress = Progress()
    assert shown(fill(cache, manifest, origin, progress)) == FILES
    assert not hub.requests
    assert progress.present_bytes == manifest.total_bytes
    check_books(cache)
    assert not orphans(cache)


class Backwards:
    """A cluster of which nobody is known yet; its order is another than the file's."""

    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        return None

    async def bring(self, chunk: Chunk, into: memoryview, *asked: object) -> str | None:
        return None

    async def arranged(self, chunks: Sequence[Chunk]) -> list[int]:
        return list(reversed(range(len(chunks))))


def test_a_fill_of_a_cluster_takes_its_order_also_where_nobody_is_known_yet(
    hub: HubServer, origin: Origin, cache: NodeCache
) -> None:
    hub.commit(REPO, FILES)
    manifest = listed(origin)
    hub.reset()

    async def main() -> Path:
        async with opened(cache, manifest, origin, upstream(fetches_max=1)) as delivery:
            delivery.snapshots[0].cluster = Backwards()
            return await delivery.fill(delivery.snapshots[0])

    assert shown(within(main)) == FILES
    # Twice where the Hub says first where it is.
    starts = dict.fromkeys(int(each.partition("=")[2].partition("-")[0]) for each in chunks_asked_for(hub))
    assert [start for start in starts if start] == [3 * CHUNK_BYTES, 2 * CHUNK_BYTES, CHUNK_BYTES]


def test_many_readers_of_one_chunk_are_one_fetch(hub: HubServer, origin: Origin, cache: NodeCache) -> None:
    hub.commit(REPO, FILES)
    manifest = listed(origin)
    hub.reset()
    results: list[bytes] = []

    async def main() -> None:
        async with opened(cache, manifest, origin) as delivery, trio.open_nursery() as nursery:

            async def reader(start: int) -> None:
                results.append(await read(delivery, "model.safetensors", start, start + 1000))

            for number in range(20):
                nursery.start_soon(reader, number * 1000)

    within(main)
    assert sorted(results) == sorted(MODEL[number * 1000 : number * 1000 + 1000] for number in range(20))
    assert hub.bytes_sent == CHUNK_BYTES


def test_first_reads_of_all_chunks_at_once(hub: HubServer, origin: Origin, cache: NodeCache) -> None:
    """Opened twice, a file's own locks would shut each other out."""
    hub.commit(REPO, FILES)
    manifest = listed(origin)
    hub.reset()

    async def main() -> None:
        async with opened(cache, manifest, origin) as delivery, trio.open_nursery() as nursery:

            async def reader(start: int, stop: int) -> None:
                assert await read(delivery, "model.safetensors", start, stop) == MODEL[start:stop]

            for start in range(0, len(MODEL), CHUNK_BYTES):
                nursery.start_soon(reader, start, min(start + CHUNK_BYTES + 5, len(MODEL)))

    within(main)
    assert hub.bytes_sent == len(MODEL)


def test_a_reader_that_goes_away_leaves_the_fetch_to_the_others(
    hub: HubServer, origin: Origin, cache: NodeCache
) -> None:
    hub.commit(REPO, FILES)
    manifest = listed(origin)
    hub.faults.add(slow_bytes_per_s=16 << 20, times=None)
    hub.reset()

    async def main() -> None:
        async with opened(cache, manifest, origin) as delivery, trio.open_nursery() as nursery:
            with trio.move_on_after(0.1) as scope:
                await read(delivery, "model.safetensors", 0, 10)
            assert scope.cancelled_caught
            nursery.start_soon(read, delivery, "model.safetensors", 0, 10)

    within(main)
    assert hub.bytes_sent == CHUNK_BYTES


def test_what_is_read_comes_before_what_is_only_filled(
    hub: HubServer, origin: Origin, cache: NodeCache
) -> None:
    """Hundreds of chunks queue for one slot; a reader of the last waits for none of them."""
    files = {f"{number:03}.bin": content(f"file {number}", 200_000) for number in range(60)}
    hub.commit(REPO, files)
    manifest = listed(origin)
    hub.faults.add(method="GET", match="[0-9a-f]{64}|bin", delay_s=0.1, times=None)
    progress = Progress()

    async def main() -> int:
        config = upstream(fetches_max=1)
        async with (
            opened(cache, manifest, origin, config, progress) as delivery,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(delivery.fill, delivery.snapshots[0])
            while not progress.files_whole:
                await trio.sleep(0.01)
            assert await read(delivery, "059.bin") == files["059.bin"]
            nursery.cancel_scope.cancel()
        return progress.upstream_bytes

    assert within(main) < 20 * 200_000


def test_descriptors_of_files_that_are_done_are_not_kept(
    hub: HubServer, origin: Origin, cache: NodeCache
) -> None:
    files = {f"{number:03}.json": content(f"small {number}", 700) for number in range(120)}
    files["big.bin"] = MODEL
    hub.commit(REPO, files)
    manifest = listed(origin)

    async def main() -> None:
        async with opened(cache, manifest, origin) as delivery:
            before = len(os.listdir("/proc/self/fd"))
            await delivery.fill(delivery.snapshots[0])
            for path, data in files.items():
                assert await read(delivery, path) == data
            assert len(os.listdir("/proc/self/fd")) < before + 40

    within(main)


def test_a_read_that_failed_succeeds_later(hub: HubServer, origin: Origin, cache: NodeCache) -> None:
    hub.commit(REPO, FILES)
    manifest = listed(origin)

    async def main() -> None:
        async with opened(cache, manifest, origin, upstream(attempts=1)) as delivery:
            hub.stop()
            with pytest.raises(UnavailableError):
                await read(delivery, "model.safetensors", 0, 10)
            hub.start()
            assert await read(delivery, "model.safetensors", 0, 10) == MODEL[:10]

    within(main)


def test_a_flipped_byte_is_asked_for_again(hub: HubServer, origin: Origin, cache: NodeCache) -> None:
    files = {"one.bin": content("one", 100_000)}
    hub.commit(REPO, files)
    manifest = listed(origin)
    origin.read(
        manifest.revision, manifest.files[0], 0, memoryview(bytearray(10))
    )  # resolved before the fault
    hub.faults.add(match="one|[0-9a-f]{64}", wrong_bytes=True, times=1)
    hits = hub.faults.hits
    assert shown(fill(cache, manifest, origin)) == files
    assert hub.faults.hits == hits + 1


@pytest.mark.parametrize("path", ["one.bin", "model.safetensors"])
def test_wrong_bytes_are_never_shown_and_nothing_of_them_stays(
    hub: HubServer, origin: Origin, cache: NodeCache, path: str
) -> None:
    files = {"one.bin": content("one", 100_000), "model.safetensors": MODEL}
    hub.commit(REPO, {path: files[path]})
    manifest = listed(origin)
    hub.faults.add(wrong_bytes=True, times=None)
    hub.reset()

    async def main() -> None:
        async with opened(cache, manifest, origin) as delivery:
            with pytest.raises(IntegrityError, match="never shown"):
                await delivery.fill(delivery.snapshots[0])
            if path == "model.safetensors":
                with pytest.raises(IntegrityError):
                    await read(delivery, path, 0, 10)

    within(main)
    assert cache.usage().present_bytes == 0
    assert cache.whole_tree(cache.snapshot_of(SELECTION, manifest.revision) or "") is None
    check_books(cache)
    hub.faults.clear()
    assert shown(fill(cache, manifest, origin)) == {path: files[path]}


def test_two_snapshots_that_share_a_file_fetch_it_once(
    hub: HubServer, origin: Origin, cache: NodeCache
) -> None:
    hub.commit(REPO, FILES)
    first = listed(origin)
    hub.commit(REPO, {**FILES, "more.bin": b"more"})
    second = listed(origin)
    hub.reset()

    async def main() -> None:
        admitted = []
        for manifest in (first, second):
            snapshot, pin = cache.admit(manifest, SELECTION, "main", "")
            record = cache.record(snapshot)
            assert record is not None
            admitted.append(Admitted(snapshot, record, pin, origin))
        async with open_delivery(cache, admitted, upstream(), Progress()) as delivery:
            trees: list[Path] = []

            async def bring(number: int) -> None:
                trees.append(await delivery.fill(delivery.snapshots[number]))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(bring, 0)
                nursery.start_soon(bring, 1)
            assert {len(shown(tree)) for tree in trees} == {3, 4}

    within(main)
    assert hub.bytes_sent == second.total_bytes


def test_two_caches_of_one_process_fetch_each_byte_once(
    hub: HubServer, origin: Origin, opened_caches: Callable[..., NodeCache]
) -> None:
    """As two processes do: only the locks on the disk are between them."""
    hub.commit(REPO, FILES)
    manifest = listed(origin)
    hub.reset()

    async def bring(cache: NodeCache) -> None:
        async with opened(cache, manifest, origin) as delivery:
            assert shown(await delivery.fill(delivery.snapshots[0])) == FILES

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(bring, opened_caches())

    within(main)
    assert hub.bytes_sent == manifest.total_bytes


_fsync = os.fsync


def fail_for_blobs(fd: int) -> None:
    """fsync on a disk that loses what is written to blobs; a failing disk can't be had here."""
    if "/blobs/" in os.readlink(f"/proc/self/fd/{fd}"):
        raise OSError(5, "Input/output error")
    _fsync(fd)


@pytest.mark.parametrize("call", ["fsync", "syncfs"])
def test_a_disk_that_does_not_take_the_bytes_is_an_error_and_they_are_not_trusted(
    hub: HubServer, origin: Origin, cache: NodeCache, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    files = {
        f"{number}.bin": content(f"file {number}", 1000) for number in range(3 if call == "fsync" else 20)
    }
    hub.commit(REPO, files)
    manifest = listed(origin)

    def fail(*_: object) -> None:
        raise CacheError("the cache's filesystem can't be synced (Input/output error)")

    if call == "fsync":
        monkeypatch.setattr("bdnfs.cache.blobs.os.fsync", fail_for_blobs)
    else:
        monkeypatch.setattr("bdnfs.delivery.sealing.SYNCFS_FILES", 1)
        monkeypatch.setattr("bdnfs.delivery.sealing._syncfs", fail)
    with pytest.raises(CacheError, match="synced"):
        fill(cache, manifest, origin)
    monkeypatch.undo()
    assert not any(row.whole for _, row in cache.blobs())
    check_books(cache)
    assert shown(fill(cache, manifest, origin)) == files


def test_an_early_sync_that_fails_stops_the_file(
    hub: HubServer, origin: Origin, cache: NodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit(REPO, FILES)
    manifest = listed(origin)

    monkeypatch.setattr("bdnfs.cache.blobs.os.fsync", fail_for_blobs)
    with pytest.raises(CacheError, match="synced"):
        fill(cache, manifest, origin, sync_bytes=CHUNK_BYTES)
    monkeypatch.undo()
    assert shown(fill(cache, manifest, origin)) == FILES
    check_books(cache)


def test_a_fill_that_is_cancelled_ends_soon_and_goes_on_later(
    hub: HubServer, origin: Origin, cache: NodeCache
) -> None:
    hub.commit(REPO, FILES)
    manifest = listed(origin)
    hub.reset()
    hub.faults.add(slow_bytes_per_s=24 << 20, times=None)
    progress = Progress()

    async def main() -> None:
        config = upstream(fetches_max=1)
        async with (
            opened(cache, manifest, origin, config, progress) as delivery,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(delivery.fill, delivery.snapshots[0])
            while progress.upstream_bytes < CHUNK_BYTES:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    within(main)
    kept = cache.usage().present_bytes
    assert kept >= CHUNK_BYTES
    hub.faults.clear()
    assert shown(fill(cache, manifest, origin)) == FILES
    assert hub.bytes_sent <= manifest.total_bytes + CHUNK_BYTES
