"""Upstreams without ranges: a file comes in one stream, and is read as it comes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import trio

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import UnavailableError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.units import MIB
from bdnfs.manifest.model import FileEntry, Manifest
from bdnfs.origins.base import Origin
from benchmarks.servers.hub import HubServer
from tests.unit.cache.stocked import check_books, content, manifest_of, shown
from tests.unit.delivery.downloads import REPO, fill, listed, opened, read, upstream, within

FILES = {"model.safetensors": content("stream", 2 * CHUNK_BYTES + 4097), "config.json": b"{}"}


def unranged(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(
        manifest, files=tuple(msgspec.structs.replace(file, ranged=False) for file in manifest.files)
    )


def test_a_stream_is_filled_in_one_request_a_file(hub: HubServer, origin: Origin, cache: NodeCache) -> None:
    hub.commit(REPO, FILES)
    manifest = unranged(listed(origin))
    hub.reset()
    assert shown(fill(cache, manifest, origin)) == FILES
    assert hub.bytes_sent == manifest.total_bytes
    check_books(cache)


def test_the_first_bytes_are_read_before_the_last_have_come(
    hub: HubServer, origin: Origin, cache: NodeCache
) -> None:
    hub.commit(REPO, FILES)
    manifest = unranged(listed(origin))
    hub.faults.add(slow_bytes_per_s=16 << 20, times=None)
    hub.reset()

    async def main() -> None:
        async with opened(cache, manifest, origin) as delivery:
            assert await read(delivery, "model.safetensors", 0, 100) == FILES["model.safetensors"][:100]
            assert hub.bytes_sent < manifest.total_bytes - 2 * MIB
            assert await read(delivery, "model.safetensors") == FILES["model.safetensors"]

    within(main)
    assert hub.bytes_sent < manifest.total_bytes + MIB


def test_who_waits_for_anothers_stream_reads_along(
    hub: HubServer, origin: Origin, opened_caches: Callable[..., NodeCache]
) -> None:
    hub.commit(REPO, FILES)
    manifest = unranged(listed(origin))
    hub.faults.add(slow_bytes_per_s=12 << 20, times=None)
    hub.reset()
    first, second = opened_caches(), opened_caches()

    async def main() -> None:
        async with (
            opened(first, manifest, origin) as delivery,
            opened(second, manifest, origin) as other,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(delivery.fill, delivery.snapshots[0])
            while not hub.bytes_sent:
                await trio.sleep(0.01)
            assert await read(other, "model.safetensors", 0, 100) == FILES["model.safetensors"][:100]
            assert hub.bytes_sent < manifest.total_bytes
            assert shown(await other.fill(other.snapshots[0])) == FILES

    within(main)
    assert hub.bytes_sent == manifest.total_bytes


@dataclass
class OddStream:
    """Streams that go wrong: what each call yields, in order; the last for ever."""

    answers: list[list[bytes | Exception]]
    name: str = "odd"
    calls: int = field(default=0)

    def resolve(self, revision: str | None) -> str:
        return "1" * 40

    def list(self, revision: str | None) -> Iterator[FileEntry]:
        return iter(())

    def read(self, revision: str | None, entry: FileEntry, start: int, into: memoryview) -> None:
        raise AssertionError("has no ranges")

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        for piece in answer:
            if isinstance(piece, Exception):
                raise piece
            yield memoryview(piece)

    def close(self) -> None:
        pass


DATA = content("odd", CHUNK_BYTES + 5000)


@pytest.mark.parametrize(
    "answer",
    [
        [DATA[:-1]],
        [],
        [DATA[: CHUNK_BYTES + 1], UnavailableError("cut off")],
    ],
    ids=["short", "nothing", "cut off"],
)
def test_a_stream_that_is_not_the_file_ends_in_an_error(
    cache: NodeCache, answer: list[bytes | Exception]
) -> None:
    origin = OddStream([answer])
    manifest = unranged(manifest_of({"odd.bin": DATA}))
    with pytest.raises(UnavailableError):
        fill(cache, manifest, origin, config=upstream(attempts=2))
    assert origin.calls == 2
    check_books(cache)
    well = OddStream([[DATA[:3_000_000], DATA[3_000_000:]]])
    assert shown(fill(cache, manifest, well)) == {"odd.bin": DATA}


@pytest.mark.parametrize("answer", [[DATA, b"more"], [DATA + b"x"], [DATA, DATA]])
def test_what_comes_after_the_last_byte_is_no_part_of_the_file(
    cache: NodeCache, answer: list[bytes | Exception]
) -> None:
    """Whether that is an error is for the origin to say; the digest says that these bytes are right."""
    tree = fill(cache, unranged(manifest_of({"odd.bin": DATA})), OddStream([answer]))
    assert shown(tree) == {"odd.bin": DATA}


def test_a_stream_that_breaks_goes_on_from_what_is_there(cache: NodeCache) -> None:
    origin = OddStream([[DATA[: CHUNK_BYTES + 1], UnavailableError("cut off", retry_after_s=0.0)], [DATA]])
    manifest = unranged(manifest_of({"odd.bin": DATA}))
    assert shown(fill(cache, manifest, origin)) == {"odd.bin": DATA}
    assert origin.calls == 2


def test_a_year_of_retry_after_is_an_error(cache: NodeCache) -> None:
    origin = OddStream([[UnavailableError("busy", retry_after_s=3e7)]])
    with pytest.raises(UnavailableError):
        fill(cache, unranged(manifest_of({"odd.bin": DATA})), origin)
    assert origin.calls == 1


def test_a_cancelled_stream_stops(hub: HubServer, origin: Origin, cache: NodeCache, tmp_path: Path) -> None:
    hub.commit(REPO, FILES)
    manifest = unranged(listed(origin))
    hub.faults.add(slow_bytes_per_s=8 << 20, times=None)

    async def main() -> None:
        async with opened(cache, manifest, origin) as delivery:
            with trio.move_on_after(0.3):
                await delivery.fill(delivery.snapshots[0])

    within(main)
    kept = cache.usage().present_bytes
    hub.faults.clear()
    assert shown(fill(cache, manifest, origin)) == FILES
    assert kept < manifest.total_bytes
    check_books(cache)
