"""Nodes of a cluster that want the same new source at once: one ingests, the others wait, whatever becomes of it."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bdnfs.mirror.lease import Holder, take
from bdnfs.session import mirror as session_mirror
from bdnfs.session.asking import open_origin_of, upstream_listing
from bdnfs.session.mirror import Mirror, open_mirror
from bdnfs.session.options import Options
from bdnfs.spec.config import parse_config
from bdnfs.spec.load import parse_spec
from bdnfs.spec.secret import Secrets
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, TINY, forker, hub, nodes, served
from tests.commands.node import Command, Node, until
from tests.contract.servers import free_port

__all__ = ["forker", "hub", "nodes", "served"]

SOURCE = "hf://acme/big"
Nodes = Callable[[], Node]


@pytest.fixture
def cluster(nodes: Nodes, tmp_path: Path) -> Callable[[int], list[Node]]:
    """Return what makes nodes of one cluster, with one mirror. None of them runs `bdnfs node`: this needs none."""
    (tmp_path / "mirror").mkdir()

    def make(count: int) -> list[Node]:
        made = [nodes() for _ in range(count)]
        for node in made:
            # Nobody listens there.
            port = free_port()
            node.configure(
                mirror=str(tmp_path / "mirror"),
                cluster={"members": [f"127.0.0.1:{port}"], "listen": f"127.0.0.1:{port}"},
                upstream={"attempts": 100},
            )
        return made

    return make


def held(tmp_path: Path) -> bool:
    return any((tmp_path / "mirror" / "leases").rglob("*.json"))


def hold(hub: HubServer) -> None:
    """Let no large file get any further until the faults are cleared: each request is given up and sent again."""
    hub.faults.add(match="/cdn/", times=None, delay_s=60)


def begun(node: Node, tmp_path: Path, *words: str) -> Command:
    """Start the first of several, and return once it is at it."""
    first = node.start(*words)
    until(lambda: held(tmp_path), "the first to take the lease")
    return first


def waits(command: Command) -> None:
    until(lambda: "waiting for process" in command.err, "it to wait for the first")


def test_one_ingests_and_the_others_wait(
    hub: HubServer, cluster: Callable[[int], list[Node]], tmp_path: Path
) -> None:
    first, *others = cluster(4)
    hold(hub)
    filling = begun(first, tmp_path, "prefetch", SOURCE, "--progress=json")
    waiting = [node.start("prefetch", SOURCE, "--progress=json") for node in others]
    for command in waiting:
        waits(command)
    hub.faults.clear()
    done = [command.wait() for command in (filling, *waiting)]
    assert hub.bytes_sent < BIG_BYTES * 1.01
    assert '"origin": ' in done[0].err
    for each in done[1:]:
        assert f'"tier_bytes": {{"mirror": {BIG_BYTES}}}' in each.err
    for each in done:
        assert each.err.count("start `bdnfs node` here") == 1
    for node in (first, *others):
        node.run("mount", SOURCE, node.m)
        node.holds(BIG)
        node.run("unmount", node.m)


def test_its_death_hands_the_work_on(
    hub: HubServer, cluster: Callable[[int], list[Node]], tmp_path: Path
) -> None:
    first, *others = cluster(3)
    hold(hub)
    filling = begun(first, tmp_path, "prefetch", SOURCE)
    waiting = [node.start("prefetch", SOURCE, "--progress=json") for node in others]
    for command in waiting:
        waits(command)
    filling.signal(signal.SIGKILL)
    filling.wait(-signal.SIGKILL)
    hub.faults.clear()
    hub.reset()
    done = [command.wait() for command in waiting]
    assert hub.bytes_sent < BIG_BYTES * 1.01
    # One of the two went on with it, the other went on waiting.
    assert sorted('"origin": ' in each.err for each in done) == [False, True]
    for node in others:
        node.run("mount", SOURCE, node.m)
        node.holds(BIG)
        node.run("unmount", node.m)


def test_who_waits_can_be_read_from(
    hub: HubServer, cluster: Callable[[int], list[Node]], tmp_path: Path
) -> None:
    """A mount stands while its fill waits: what is read is fetched from upstream, and nobody waits for ever."""
    first, second = cluster(2)
    hold(hub)
    filling = begun(first, tmp_path, "prefetch", SOURCE)
    second.run("mount", "--lazy", SOURCE, second.m)
    until(lambda: second.status()["state"].startswith("waiting for process"), "the fill to wait")
    assert second.read(second.m / "config.json") == BIG["config.json"]
    assert second.shown() == "fuse"
    hub.faults.clear()
    filling.wait()
    second.run("wait", second.m)
    second.holds(BIG)
    second.run("unmount", second.m)


def test_two_sources_in_two_orders_do_not_wait_for_each_other(
    hub: HubServer, cluster: Callable[[int], list[Node]], tmp_path: Path
) -> None:
    first, second = cluster(2)
    both = [{"source": SOURCE, "mount_location": "a"}, {"source": "hf://acme/tiny", "mount_location": "b"}]
    hold(hub)
    filling = begun(first, tmp_path, "prefetch", first.spec(*both))
    other = second.start("prefetch", second.spec(*reversed(both)))
    waits(other)
    hub.faults.clear()
    filling.wait()
    other.wait()
    assert hub.bytes_sent < (BIG_BYTES + sum(map(len, TINY.values()))) * 1.01


def test_a_timeout_ends_the_wait(
    hub: HubServer, cluster: Callable[[int], list[Node]], tmp_path: Path
) -> None:
    first, second = cluster(2)
    hold(hub)
    filling = begun(first, tmp_path, "prefetch", SOURCE)
    second.refused(7, "prefetch", SOURCE, "--timeout=3s", says=["not everything was here after 3 s"])
    hub.faults.clear()
    filling.wait()


# ---- the wait itself, with leases that end soon ---------------------------------------------------


@pytest.fixture
def opened(hub: HubServer, tmp_path: Path) -> Callable[[], Mirror]:
    (tmp_path / "mirror").mkdir()

    def make() -> Mirror:
        config = parse_config(
            {"mirror": str(tmp_path / "mirror"), "cluster": {"members": ["127.0.0.1:1"]}},
            None,
            {"HF_ENDPOINT": hub.url, "HOME": str(tmp_path)},
        )
        found = open_mirror(config, Secrets())
        assert found is not None
        return found

    return make


def test_an_expired_lease_costs_double_work_at_most(
    opened: Callable[[], Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder is stopped, and goes on after another took over: both mirror the same, and both are right."""
    monkeypatch.setattr(session_mirror, "take", partial(take, term_s=0.3, watch_s=0.05))
    weights = parse_spec({"weights": [{"source": "hf://acme/tiny", "mount_location": "/m"}]}, "spec").weights[
        0
    ]
    one, two = opened(), opened()
    config = one.config
    origin = open_origin_of(weights, config, Secrets())
    listing = upstream_listing(config, weights, origin.resolve(None), origin, Options(), print)
    stopped = one.taking(weights, listing, moved=True)
    assert stopped.ingest is not None
    assert stopped.turn is None
    waiting = two.taking(weights, listing, moved=True)
    assert (waiting.ingest, waiting.lease) == (None, None)
    assert waiting.turn is not None
    seen: list[Holder] = []

    def goes_on(holder: Holder) -> bool:
        seen.append(holder)
        return True

    taken = waiting.turn(goes_on)
    assert seen
    assert taken.ingest is not None
    assert taken.lease is not None
    for ingest in (stopped.ingest, taken.ingest):
        for file in listing.files:
            data = memoryview(bytearray(file.size))
            if file.size:
                origin.read(listing.revision, file, 0, data)
            ingest.put_file(file, [ingest.put_chunk(data)] if file.size else [])
    rows = [stopped.ingest.publish(), taken.ingest.publish()]
    assert rows[0].digest == rows[1].digest
    assert stopped.lease is not None
    stopped.lease.renew()
    assert stopped.lease.lost
    assert sorted(one.files(rows[0])) == sorted(TINY)
    # Whoever comes now finds it done.
    late = opened().taking(weights, listing, moved=True)
    assert late.turn is not None
    found = late.turn(lambda _: True)
    assert (found.ingest, found.lease) == (None, None)
    assert sorted(found.files) == sorted(TINY)
    for each in (stopped, waiting, late):
        each.close()
    taken.lease.release()
    origin.close()


def test_who_gets_no_further_is_not_waited_for(
    opened: Callable[[], Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_mirror, "_STALL_S", 0.3)
    monkeypatch.setattr(session_mirror, "take", partial(take, watch_s=0.05))
    weights = parse_spec({"weights": [{"source": "hf://acme/tiny", "mount_location": "/m"}]}, "spec").weights[
        0
    ]
    one, two = opened(), opened()
    origin = open_origin_of(weights, one.config, Secrets())
    listing = upstream_listing(one.config, weights, origin.resolve(None), origin, Options(), print)
    holding, waiting = one.taking(weights, listing, moved=True), two.taking(weights, listing, moved=True)
    assert waiting.turn is not None
    taken = waiting.turn(lambda _: True)
    assert (taken.files, taken.ingest, taken.lease) == ({}, None, None)
    holding.close()
    waiting.close()
    origin.close()
