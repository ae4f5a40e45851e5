"""A node with real mounts against plain dicts: whatever is done in whatever order, readers see the right bytes."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import get_state_machine_test, initialize, invariant, rule

from benchmarks.servers.hub import HubServer
from tests.commands.forker import Forker
from tests.model.commanding import Commanding, hows, numbers
from tests.model.oracle import CAPACITY_BYTES, CONTENTS, PATHS, Handle
from tests.model.resident import Resident, digest_of
from tests.unit.cache.stocked import disk_bytes

states = st.sampled_from(("up", "slow", "no bytes", "down", "up"))
repositories = st.dictionaries(st.sampled_from(PATHS), st.sampled_from(sorted(CONTENTS)), min_size=1)
TROUBLED_S = 60.0
# The first few seeds, and no new one after so long: a machine that is slow and busy shows less of it.
EXAMPLES, BOUND_S = 6, 20.0


class Machine(Commanding):
    """What upstream and readers do, beside what the user does, and what always holds."""

    # -- what upstream does ------------------------------------------------------------------------

    @initialize(first=repositories, second=repositories, how=hows, state=states)
    def begin(self, first: dict[str, str], second: dict[str, str], how: str, state: str) -> None:
        """Something is always mounted at first: much of what is done needs it."""
        self.upstream_becomes("up")
        self.upstream_changes(first)
        self.upstream_changes(second)
        if state != "down":  # nothing is here yet
            self.upstream_becomes(state)
        self.mount("a", 1, False, how)

    @rule(names=repositories)
    def upstream_changes(self, names: dict[str, str]) -> None:
        files = {path: CONTENTS[name] for path, name in names.items()}
        revision = self.hub.commit(self.repo, files)
        self.oracle.files.pop(revision, None)
        self.oracle.files[revision] = files

    @rule(state=states)
    def upstream_becomes(self, state: str) -> None:
        self.hub.faults.clear()
        if state == "slow":
            self.hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=16e6)
        elif state == "no bytes":
            self.hub.faults.add(match="/cdn/", times=None, status=503)
        if state == "down":
            self.hub.stop()
        else:
            self.hub.start()
        self.oracle.upstream = state
        if not self.oracle.fetched:
            for mounted in self.oracle.mounts.values():
                mounted.troubled = True

    # -- what readers do --------------------------------------------------------------------------

    @rule(
        which=numbers, at=numbers, length=st.integers(0, 20 << 20), how=st.sampled_from(("pread", "mapped"))
    )
    def read(self, which: int, at: int, length: int, how: str) -> None:
        if self.oracle.mounts:
            location = sorted(self.oracle.mounts)[which % len(self.oracle.mounts)]
            files = self.oracle.files[self.oracle.mounts[location].revision]
            path = sorted(files)[at % len(files)]
            offset = at % (len(files[path]) + 100)
            self.check(f"{location}/{path}", files[path], offset, length, how, location)

    @rule(which=numbers, number=st.integers(0, 3))
    def open_file(self, which: int, number: int) -> None:
        if self.oracle.mounts and number not in self.oracle.handles:
            location = sorted(self.oracle.mounts)[which % len(self.oracle.mounts)]
            mounted = self.oracle.mounts[location]
            path = sorted(self.oracle.files[mounted.revision])[
                which % len(self.oracle.files[mounted.revision])
            ]
            error = self.resident.open(f"{location}/{path}", number)
            dead = self.is_dead(location)
            assert error is None or dead, f"opening {location}/{path}: errno {error}"
            if error is None:
                # What was native before it was opened; a hand-off in between leaves it open.
                handle = Handle(mounted.revision, path, location, native=mounted.state == "whole", lost=dead)
                self.oracle.handles[number] = handle

    @rule(number=st.integers(0, 3), at=numbers, length=st.integers(0, 20 << 20), close=st.booleans())
    def read_open_file(self, number: int, at: int, length: int, close: bool) -> None:
        handle = self.oracle.handles.get(number)
        if handle:
            expected = self.oracle.files[handle.revision][handle.path]
            location = None if handle.native else handle.location
            self.check(number, expected, at % (len(expected) + 1), length, "pread", location, handle.lost)
            if close:
                self.resident.close_file(number)
                self.oracle.closed.add(self.oracle.handles.pop(number).revision)

    def check(
        self,
        place: str | int,
        expected: bytes,
        offset: int,
        length: int,
        how: str,
        location: str | None,
        lost: bool = False,
    ) -> None:
        """Read, and compare. location: whose daemon answers, if one does; lost: if one did."""
        oracle, wanted = self.oracle, memoryview(expected)[offset : offset + length]
        deadline = time.monotonic() + TROUBLED_S
        while True:
            found = self.resident.read(place, offset, length, how)
            said = f"{place} at {offset}, {length} bytes: {found}"
            assert found.digest == digest_of(wanted[: found.length]), f"wrong bytes: {said}"
            if found.error is None:
                assert found.length == len(wanted), f"{len(wanted)} bytes were to come: {said}"
                return
            if lost or (location is not None and self.is_dead(location)):
                return
            assert location is not None, said
            there = oracle.mounts[location]
            assert there.state != "whole", said
            assert there.troubled, said
            if not oracle.fetched:
                return
            assert time.monotonic() < deadline, f"upstream is back, and still: {said}"

    # -- what always holds ------------------------------------------------------------------------

    @invariant()
    def capacity_is_kept(self) -> None:
        blobs = self.node.cache / "blobs"
        used = disk_bytes(blobs) if blobs.exists() else 0
        assert used <= CAPACITY_BYTES + 4096 * 40, f"{used} bytes of blobs"

    @invariant()
    def what_is_mounted_reads_right(self) -> None:
        for location, mounted in list(self.oracle.mounts.items()):
            shown = self.node.shown(Path(location))
            assert shown == "native" if mounted.state == "whole" else shown, (
                f"{location} is {mounted}, {shown!r}"
            )
            if shown == "native":
                self.is_whole_now(mounted)
            files = self.oracle.files[mounted.revision]
            if not self.is_dead(location):
                assert self.resident.names(location) == sorted(files), location
            path = self.dice.choice(sorted(files))
            if mounted.state == "whole":
                self.check(f"{location}/{path}", files[path], 0, len(files[path]), "pread", location)
                continue
            for _ in range(3 if self.oracle.upstream == "up" else 1):  # else each takes its time
                offset = self.dice.randrange(len(files[path]) + 1)
                self.check(f"{location}/{path}", files[path], offset, 150_000, "pread", location)

    # -- the end ----------------------------------------------------------------------------------

    def teardown(self) -> None:
        failing = sys.exc_info()[0] is not None
        try:
            for number, handle in self.oracle.handles.items():
                self.resident.close_file(number)
                self.oracle.closed.add(handle.revision)
            self.oracle.handles.clear()
            if not failing:
                failing = True
                self.ends_clean()
                failing = False
        finally:
            if failing:
                print("\n".join(self.log))
            self.node.end()
            self.node.remove()

    def ends_clean(self) -> None:
        """Whatever was done: what is mounted stays, and what is unmounted goes, to the last byte."""
        self.upstream_becomes("up")
        self.mount("c", 0, False, "whole")
        self.evict()
        self.what_is_mounted_reads_right()
        for location in list(self.oracle.mounts):
            done = self.command("unmount", location)
            assert done.code == 0, done.error
        self.command("status")
        self.node.clean()
        self.unpin()
        self.node.check_cache()
        self.oracle.mounts.clear()
        self.evict()
        assert not disk_bytes(self.node.cache / "blobs")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[type[Machine]]:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting for real needs root and /dev/fuse")
    with HubServer(tmp_path) as Machine.hub:
        Machine.forker, Machine.resident = Forker(), Resident()
        try:
            yield Machine
        finally:
            Machine.resident.end()
            Machine.forker.close()


def explore(machine: type[Machine], number: int, steps: int) -> None:
    """Run the machine twice: once with the simplest choices, once with those that number makes.

    Shrinking is left out: a step is a command, and the log says what happened.
    """
    test = get_state_machine_test(
        machine,
        settings=settings(
            max_examples=2,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"BDNFS_SEED={number}", flush=True)
    seed(number)(test)()


@pytest.mark.timeout(300)
def test_whatever_is_mounted_and_done_the_dict_is_right(machine: type[Machine]) -> None:
    end = time.monotonic() + BOUND_S
    for number in range(EXAMPLES):
        explore(machine, number, steps=20)
        if time.monotonic() > end:
            break


@pytest.mark.long
@pytest.mark.timeout(0)
def test_whatever_is_mounted_and_done_for_long_the_dict_is_right(machine: type[Machine]) -> None:
    end = time.monotonic() + float(os.environ.get("BDNFS_LONG_S", "3600"))
    while time.monotonic() < end:
        number = int(os.environ.get("BDNFS_SEED") or int.from_bytes(os.urandom(4), "big"))
        explore(machine, number, steps=50)
