"""One flight for everyone who wants a chunk, whatever becomes of who asked first."""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from blake3 import blake3

from bdnfs.cache.share import Share, ShareKey
from bdnfs.core.errors import IntegrityError, NotFoundError, UnavailableError
from bdnfs.mirror.contents import Contents
from bdnfs.mirror.opening import open_store
from bdnfs.serve.node.asked import Asked
from bdnfs.serve.node.owning import Owning
from bdnfs.spec.upstream import UpstreamConfig
from bdnfs.volume.records import CHUNK_TYPE

DATA = random.Random(1).randbytes(70_000)


class CountedStore:
    """A mirror's store that counts its reads, and may hold them up or fail them."""

    def __init__(self, directory: Path) -> None:
        self._store = open_store(str(directory), UpstreamConfig(), None)
        self.reads = 0
        self.gate = threading.Event()
        self.gate.set()
        self.failures: list[Exception] = []

    def fill(self, key: str, into: memoryview) -> str:
        self.reads += 1
        assert self.gate.wait(30)
        if self.failures:
            raise self.failures.pop()
        return self._store.fill(key, into)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class NoPeers:
    """Other nodes that hold nothing, or one chunk; how often they were asked."""

    def __init__(self, data: bytes | None = None) -> None:
        self.data, self.asks = data, 0

    async def held(self, asked: Asked, most: int) -> memoryview | None:
        self.asks += 1
        return None if self.data is None else memoryview(bytearray(self.data))


def put(store: CountedStore, data: bytes) -> Asked:
    digest = blake3(data).hexdigest()
    Contents(store, "default", "weights").put(f"b3:{digest}", data, CHUNK_TYPE)  # type: ignore[arg-type]
    return Asked(ShareKey("default", "weights", digest), 0, len(data), None, None, "", held=False)


@pytest.fixture
def store(tmp_path: Path) -> CountedStore:
    return CountedStore(tmp_path / "mirror")


@pytest.fixture
def share(tmp_path: Path) -> Share:
    found = Share(tmp_path / "share", 1 << 20, lambda: 1 << 30)
    found.scan()
    return found


def unexpected(error: BaseException) -> str:
    raise AssertionError from error


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)


def test_everyone_who_waits_gets_one_reading_of_the_mirror(store: CountedStore, share: Share) -> None:
    asked, got = put(store, DATA), []

    async def ask(owning: Owning) -> None:
        got.append(await owning.fetch(asked))

    async def main() -> None:
        async with trio.open_nursery() as flights:
            owning = Owning(store, share, NoPeers(), flights, unexpected)  # type: ignore[arg-type]
            store.gate.clear()
            async with trio.open_nursery() as asking:
                # The first goes away while the mirror is read: the others lose nothing.
                with trio.CancelScope() as first:
                    asking.start_soon(ask, owning)
                    async with trio.open_nursery() as leaving:
                        leaving.start_soon(ask, owning)
                        await until(lambda: store.reads == 1)
                        first.cancel()
                for _ in range(20):
                    asking.start_soon(ask, owning)
                await trio.testing.wait_all_tasks_blocked()
                assert owning.flights == 1
                store.gate.set()
            assert owning.flights == 0

    trio.run(main)
    assert store.reads == 1
    assert len(got) == 21
    assert all(bytes(each.data) == DATA and each.kept and each.tier == "mirror" for each in got)
    assert share.find(asked.key) == len(DATA)


def test_what_fails_fails_for_all_and_is_tried_anew_by_the_next(store: CountedStore, share: Share) -> None:
    asked = put(store, DATA)

    async def main() -> None:
        async with trio.open_nursery() as flights:
            owning = Owning(store, share, NoPeers(), flights, unexpected)  # type: ignore[arg-type]
            store.failures = [UnavailableError("the mirror is away"), UnavailableError("the mirror is away")]
            with pytest.raises(UnavailableError):
                await owning.fetch(asked)
            store.failures = [UnavailableError("once")]
            assert bytes((await owning.fetch(asked)).data) == DATA
            missing = Asked(ShareKey("default", "weights", "0" * 64), 0, 10, None, None, "", held=False)
            with pytest.raises(NotFoundError):
                await owning.fetch(missing)
            with pytest.raises(IntegrityError):  # a range that is not the chunk's
                await owning.fetch(asked._replace(stop=asked.stop - 1))
            assert owning.flights == 0

    trio.run(main)


def test_peers_that_hold_a_chunk_spare_the_mirror(store: CountedStore, share: Share) -> None:
    asked = put(store, DATA)
    store.reads = 0

    async def main() -> None:
        async with trio.open_nursery() as flights:
            owning = Owning(store, share, NoPeers(DATA), flights, unexpected)  # type: ignore[arg-type]
            fetched = await owning.fetch(asked)
            assert (bytes(fetched.data), fetched.tier) == (DATA, "peer")

    trio.run(main)
    assert store.reads == 0


def test_peers_that_never_have_anything_are_seldom_asked(store: CountedStore, share: Share) -> None:
    chunks = [put(store, bytes([number]) * 100) for number in range(100)]
    peers = NoPeers()

    async def main() -> None:
        async with trio.open_nursery() as flights:
            owning = Owning(store, share, peers, flights, unexpected)  # type: ignore[arg-type]
            for asked in chunks:
                await owning.fetch(asked)
            assert peers.asks < 20
            peers.data = bytes([101]) * 100  # one has something again
            for number in range(16):
                await owning.fetch(
                    chunks[0]._replace(key=ShareKey("default", "weights", chunks[number].key.digest))
                )
            assert peers.asks < 40

    trio.run(main)
