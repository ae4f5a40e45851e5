"""Two ingests of one source do the work once; one that lost its lease does it twice, and right."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.mirror.directory import DirectoryStore
from bdnfs.mirror.lease import Holder, read, take
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, forker, hub, nodes, served
from tests.commands.node import Node, until

__all__ = ["forker", "hub", "nodes", "served"]

SOURCE = "hf://acme/big"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


@pytest.fixture
def mirrored(nodes: Callable[..., Node], place: Path) -> Callable[[], Node]:
    def make() -> Node:
        node = nodes()
        node.configure(mirror=str(place), upstream={"stall": "60s"})
        return node

    return make


def leases(place: Path) -> list[Path]:
    return list((place / "leases").rglob("*.json"))


def test_two_at_once_do_the_work_once(mirrored: Callable[[], Node], hub: HubServer, place: Path) -> None:
    hub.faults.add(match=r"model\.safetensors", delay_s=6.0)
    one, two = mirrored(), mirrored()
    first = one.start("mirror", SOURCE, "--json")
    until(lambda: leases(place), "the lease")
    second = two.start("mirror", SOURCE, "--json")
    results = [command.wait().json["sources"][0] for command in (first, second)]
    assert results[0]["ref"] == results[1]["ref"]
    assert sorted(each["moved_bytes"] for each in results) == [0, BIG_BYTES]
    assert hub.bytes_sent == BIG_BYTES
    assert not leases(place)


def test_a_dead_holder_is_not_waited_for(mirrored: Callable[[], Node], hub: HubServer, place: Path) -> None:
    hub.faults.add(match=r"model\.safetensors", stall=True, times=None)
    one, two = mirrored(), mirrored()
    first = one.start("mirror", SOURCE)
    until(lambda: leases(place), "the lease")
    first.signal(signal.SIGKILL)
    first.wait(-signal.SIGKILL)
    hub.faults.clear()
    began_s = time.monotonic()
    two.run("mirror", SOURCE)
    assert time.monotonic() - began_s < 50  # far below a lease's term
    assert "0 damaged" in two.run("mirror", "verify").out


def test_a_lost_lease_costs_the_work_twice_and_no_more(
    mirrored: Callable[[], Node], hub: HubServer, place: Path
) -> None:
    hub.faults.add(match=r"model\.safetensors", delay_s=6.0, times=2)
    one, two = mirrored(), mirrored()
    first = one.start("mirror", SOURCE, "--json")
    (lease,) = until(lambda: leases(place), "the lease")
    lease.unlink()  # as if it had expired while the holder was stopped
    second = two.start("mirror", SOURCE, "--json")
    refs = {command.wait().json["sources"][0]["ref"] for command in (first, second)}
    assert len(refs) == 1
    assert len(two.run("mirror", "ls", "--json").json["versions"]) == 1
    assert "0 damaged" in two.run("mirror", "verify").out
    assert hub.bytes_sent <= 2 * BIG_BYTES


def test_gc_does_not_begin_while_something_is_mirrored(
    mirrored: Callable[[], Node], hub: HubServer, place: Path
) -> None:
    hub.faults.add(match=r"model\.safetensors", delay_s=6.0)
    one, two = mirrored(), mirrored()
    first = one.start("mirror", SOURCE)
    until(lambda: leases(place), "the lease")
    assert "is mirroring into it right now" in two.refused(5, "mirror", "gc", "--grace", "0s")
    first.wait()
    two.run("mirror", "gc", "--grace", "0s")
    assert "0 damaged" in two.run("mirror", "verify").out


def test_an_interrupted_ingest_lets_go(mirrored: Callable[[], Node], hub: HubServer, place: Path) -> None:
    hub.faults.add(match=r"model\.safetensors", stall=True, times=1)
    node = mirrored()
    first = node.start("mirror", SOURCE)
    until(lambda: leases(place), "the lease")
    first.signal(signal.SIGINT)
    first.wait(130)
    assert not leases(place)
    hub.faults.clear()
    node.run("mirror", SOURCE)
    assert "0 damaged" in node.run("mirror", "verify").out


def test_two_nodes_mount_and_mirror_at_once(
    mirrored: Callable[[], Node], hub: HubServer, place: Path
) -> None:
    pair = [mirrored(), mirrored()]
    mounting = [node.start("mount", SOURCE, node.m) for node in pair]
    for node, command in zip(pair, mounting, strict=True):
        command.wait()
        node.holds(BIG)
        node.run("unmount", node.m)
    assert "0 damaged" in pair[0].run("mirror", "verify").out
    assert hub.bytes_sent <= 2 * BIG_BYTES


# -- the lease itself ------------------------------------------------------------------------------


@pytest.fixture
def store(place: Path) -> DirectoryStore:
    return DirectoryStore(str(place))


def test_a_lease_is_one_holders(store: DirectoryStore) -> None:
    lease = take(store, "leases/a.json", waiting=lambda _: False)
    assert lease is not None
    seen: list[Holder] = []
    assert take(store, "leases/a.json", waiting=lambda holder: bool(seen.append(holder))) is None
    assert len(seen) == 1
    lease.renew(3, 7)
    held = read(store, "leases/a.json")
    assert held is not None
    assert (held[0].done, held[0].total) == (3, 7)
    lease.release()
    assert read(store, "leases/a.json") is None


def test_a_lease_that_nobody_renews_is_taken_over(store: DirectoryStore) -> None:
    old = take(store, "leases/a.json", waiting=lambda _: False)
    assert old is not None
    new = take(store, "leases/a.json", waiting=lambda _: True, term_s=0.2, watch_s=0.05)
    assert new is not None
    old.renew()
    assert old.lost
    assert not new.lost
    old.release()  # what is another's stays
    assert read(store, "leases/a.json") is not None
    new.renew()
    assert not new.lost


def test_a_renewed_lease_is_not_taken_over(store: DirectoryStore) -> None:
    lease = take(store, "leases/a.json", waiting=lambda _: False)
    assert lease is not None
    left = [20]

    def renewing(_: Holder) -> bool:
        lease.renew()
        left[0] -= 1
        return left[0] > 0

    assert take(store, "leases/a.json", waiting=renewing, term_s=5, watch_s=0.01) is None
    assert not lease.lost


def test_a_torn_lease_is_nobodys_for_long(store: DirectoryStore) -> None:
    store.put("leases/a.json", b"{", "application/json", "any")
    assert take(store, "leases/a.json", waiting=lambda _: True, term_s=0.1, watch_s=0.02) is not None
    store.put("leases/b.json", json.dumps({"id": 1}).encode(), "application/json", "any")
    assert take(store, "leases/b.json", waiting=lambda _: True, term_s=0.1, watch_s=0.02) is not None
