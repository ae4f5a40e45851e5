"""A node cache and its deliveries against a plain dict: whatever is done in whatever order."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from bdnfs.cache.node import NodeCache
from bdnfs.cache.opening import release
from bdnfs.cache.pins import Pin
from bdnfs.core.errors import SpaceError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.units import MIB
from bdnfs.manifest.model import Manifest
from benchmarks.servers.hub import HubServer
from tests.unit.cache.stocked import (
    SELECTION,
    check_books,
    content,
    disk_bytes,
    open_cache,
    orphans,
    shown,
)
from tests.unit.delivery.downloads import REPO, fill, hub_origin, listed, opened, read

# Few contents, so that snapshots share them; sizes on both sides of a chunk's edge.
CONTENTS = {
    name: content(name, size)
    for name, size in {
        "nothing": 0,
        "a": 1,
        "b": 5000,
        "c": CHUNK_BYTES,
        "d": CHUNK_BYTES + 1,
        "e": 3 * MIB,
        "f": 6 * MIB,
    }.items()
}
PATHS = ("config.json", "model.bin", "model-2.bin", "sub/x.bin", "sub/dir/y.safetensors")
CAPACITY_BYTES = 20 * MIB

# What a number chooses from depends on what is there; the number itself must not.
numbers = st.integers(0, 1 << 40)
repositories = st.dictionaries(st.sampled_from(PATHS), st.sampled_from(sorted(CONTENTS)), min_size=1)


class Machine(RuleBasedStateMachine):
    """The cache, and beside it what it should know."""

    revisions = Bundle("revisions")
    hub: HubServer

    def __init__(self) -> None:
        super().__init__()
        self.place = TemporaryDirectory()
        self.directory = Path(self.place.name) / "cache"
        self.cache = self.open()
        self.files: dict[str, dict[str, bytes]] = {}  # by revision
        self.manifests: dict[str, Manifest] = {}
        self.pins: dict[str, list[Pin]] = {}  # by revision
        self.dates: set[str] = set()
        self.damaged = False

    def open(self) -> NodeCache:
        return open_cache(self.directory, capacity_bytes=CAPACITY_BYTES)

    def teardown(self) -> None:
        for pin in [pin for pins in self.pins.values() for pin in pins]:
            pin.close()
        for revision in self.dates:
            self.cache.pin_until(self.snapshot(revision), 0)
        self.cache.evict(unused_since_s=float("inf"), dry_run=False)
        usage = self.cache.usage()
        assert usage.charged_bytes == usage.present_bytes == 0
        assert not orphans(self.cache)
        assert not disk_bytes(self.cache.layout.blobs)
        self.cache.close()
        self.place.cleanup()

    # -- what the dict says -----------------------------------------------------------------------

    def snapshot(self, revision: str) -> str:
        return self.cache.snapshot_of(SELECTION, revision) or "0" * 64

    def bytes_of(self, revisions: Iterable[str]) -> int:
        # What is not in LFS has a digest of another kind, and so a blob of its own.
        contents = {
            (path == "config.json", data)
            for revision in revisions
            for path, data in self.files[revision].items()
        }
        return sum(len(data) for _, data in contents)

    def kept(self) -> set[str]:
        """Return the revisions that nothing may evict."""
        return self.dates | {revision for revision, pins in self.pins.items() if pins}

    # -- what is done -----------------------------------------------------------------------------

    @rule(target=revisions, names=repositories)
    def upstream_changes(self, names: dict[str, str]) -> str:
        files = {path: CONTENTS[name] for path, name in names.items()}
        revision = self.hub.commit(REPO, files)
        origin = hub_origin(self.hub.url)
        self.files[revision], self.manifests[revision] = files, listed(origin)
        origin.close()
        assert self.manifests[revision].revision == revision
        return revision

    @rule(revision=revisions)
    def admit(self, revision: str) -> None:
        fits = self.bytes_of(self.kept() | {revision}) <= CAPACITY_BYTES
        before = self.cache.usage()
        try:
            _, pin = self.cache.admit(self.manifests[revision], SELECTION, "main", "")
        except SpaceError:
            assert not fits
            assert self.cache.usage().present_bytes == before.present_bytes
        else:
            assert fits
            self.pins.setdefault(revision, []).append(pin)

    @rule(revision=revisions)
    def let_go(self, revision: str) -> None:
        if self.pins.get(revision):
            self.pins[revision].pop().close()

    @rule(revision=revisions)
    def fill(self, revision: str) -> None:
        origin = hub_origin(self.hub.url)
        self.hub.reset()
        try:
            tree = fill(self.cache, self.manifests[revision], origin)
        except SpaceError:
            assert self.bytes_of(self.kept() | {revision}) > CAPACITY_BYTES
        else:
            assert shown(tree) == self.files[revision]
            # What was there may have been damaged; what is evicted for it is never its own.
            assert self.damaged or self.hub.bytes_sent <= self.bytes_of([revision])
        finally:
            origin.close()

    @rule(revision=revisions, which=numbers, at=numbers, length=st.integers(0, MIB))
    def read_some(self, revision: str, which: int, at: int, length: int) -> None:
        """Some chunks come and stay, as a daemon that ends in the middle leaves them."""
        path, expected = sorted(self.files[revision].items())[which % len(self.files[revision])]
        start = at % (len(expected) + 1)
        stop = min(len(expected), start + length)
        origin = hub_origin(self.hub.url)

        async def main() -> None:
            async with opened(self.cache, self.manifests[revision], origin) as delivery:
                assert await read(delivery, path, start, stop) == expected[start:stop]

        try:
            trio.run(main)
        except SpaceError:
            assert self.bytes_of(self.kept() | {revision}) > CAPACITY_BYTES
        finally:
            origin.close()

    @rule(revision=revisions)
    def mount(self, revision: str) -> None:
        snapshot = self.cache.snapshot_of(SELECTION, revision)
        if snapshot is not None:
            pin = self.cache.pin(snapshot)
            tree = self.cache.whole_tree(snapshot)
            assert tree is None or shown(tree) == self.files[revision]
            pin.close()

    @rule(revision=revisions, on=st.booleans())
    def pin_by_date(self, revision: str, on: bool) -> None:
        snapshot = self.cache.snapshot_of(SELECTION, revision)
        if snapshot is not None:
            self.cache.pin_until(snapshot, time.time() + 3600 if on else 0)
            (self.dates.add if on else self.dates.discard)(revision)

    @rule()
    def evict(self) -> None:
        whole = {revision for revision in self.kept() if self.is_whole(revision)}
        self.cache.evict(unused_since_s=float("inf"), dry_run=False)
        assert {revision for revision in self.kept() if self.is_whole(revision)} == whole
        assert self.cache.usage().charged_bytes <= self.bytes_of(self.kept())

    def is_whole(self, revision: str) -> bool:
        return any(
            item.row.whole for item in self.cache.holdings() if item.snapshot_id == self.snapshot(revision)
        )

    @rule()
    def crash(self) -> None:
        """End as kill -9 does: locks go, files stay."""
        for pin in [pin for pins in self.pins.values() for pin in pins]:
            pin.close()
        self.pins.clear()
        own = self.cache._writers._own
        if own is not None:
            os.close(own[1])
        release(self.cache._index)
        self.cache = self.open()

    @rule()
    def lose_the_index(self) -> None:
        self.crash()
        self.dates.clear()  # they were in it
        self.cache.close()
        (self.directory / "index.lmdb").unlink()
        self.cache = self.open()

    @rule(which=numbers, at=numbers)
    def damage(self, which: int, at: int) -> None:
        """Somebody writes into a whole blob; its time says so."""
        whole = sorted(blob for blob, row in self.cache.blobs() if row.whole)
        if whole:
            self.damaged = True
            path = self.cache.layout.blob(whole[which % len(whole)])
            offset = at % path.stat().st_size
            with path.open("r+b") as file:
                file.seek(offset)
                byte = file.read(1)
                file.seek(offset)
                file.write(bytes([byte[0] ^ 1]))

    # -- what always holds ------------------------------------------------------------------------

    @invariant()
    def books_are_right(self) -> None:
        check_books(self.cache)

    @invariant()
    def the_disk_holds_no_more_than_is_charged(self) -> None:
        used = disk_bytes(self.cache.layout.root / "blobs")
        assert used <= self.cache.usage().charged_bytes + 4096 * 12


def run(directory: Path, **fields: object) -> None:
    with HubServer(directory) as Machine.hub:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Machine,
            settings=settings(
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
                **fields,  # type: ignore[arg-type]
            ),
        )


def test_whatever_is_done_the_dict_is_right(tmp_path: Path) -> None:
    run(tmp_path, max_examples=12, stateful_step_count=16, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_whatever_is_done_for_long_the_dict_is_right(tmp_path: Path) -> None:
    run(tmp_path, max_examples=300, stateful_step_count=40)
