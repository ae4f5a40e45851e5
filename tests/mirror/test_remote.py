"""A mirror in a bucket that is slow, overloaded, away, or refuses: what is right gets there, or a clear error does."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdnfs.core.ranges import CHUNK_BYTES
from benchmarks.servers.faults import Fault, Faults
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, forker, hub, nodes, served
from tests.commands.node import Node
from tests.mirror.conftest import started
from tests.mirror.stores import Stores
from tests.upstream.proxy import FaultyProxy

__all__ = ["forker", "hub", "nodes", "served"]

SOURCE = "hf://acme/big"
EXPIRED = "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with started("s3", tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def front(bucket: Stores) -> Iterator[FaultyProxy]:
    with FaultyProxy(bucket.port, Faults()) as proxy:
        yield proxy


@pytest.fixture
def mirrored(nodes: Callable[..., Node], bucket: Stores, front: FaultyProxy) -> Callable[[], Node]:
    url = bucket.fresh_url()

    def make() -> Node:
        node = nodes()
        node.configure(mirror=url)
        node.environment |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{front.port}",
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "hidden-key",
        }
        return node

    return make


def test_a_bucket_is_a_mirror(mirrored: Callable[[], Node], hub: HubServer) -> None:
    one, two, three = mirrored(), mirrored(), mirrored()
    one.run("mount", SOURCE, one.m)
    one.holds(BIG)
    two.run("mirror", SOURCE)
    assert hub.bytes_sent == BIG_BYTES
    down = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    (version,) = three.run("mirror", "ls", "--json").json["versions"]
    done = three.run("mount", version["ref"], three.m, **down)
    assert "from mirror" in done.err
    three.holds(BIG)
    assert "0 damaged" in two.run("mirror", "verify").out
    for node in (one, three):
        node.run("unmount", node.m)
        node.check_cache()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(method="PUT", status=503, times=3),
        Fault(method="PUT", status=429, headers={"Retry-After": "0"}, times=3),
        Fault(method="PUT", reset=True, times=2),
        Fault(method="HEAD", status=500, times=2),
    ],
    ids=lambda fault: f"{fault.method}-{fault.status or 'reset'}",
)
def test_what_passes_is_tried_again(
    mirrored: Callable[[], Node], front: FaultyProxy, hub: HubServer, fault: Fault
) -> None:
    node = mirrored()
    front.faults.add(Fault(**{**vars(fault), "match": "objects/b3"}))
    node.run("mirror", SOURCE)
    assert front.faults.hits == fault.times
    assert "0 damaged" in node.run("mirror", "verify").out
    assert hub.bytes_sent == BIG_BYTES


def test_expired_credentials_on_the_way(
    mirrored: Callable[[], Node], front: FaultyProxy, hub: HubServer
) -> None:
    node = mirrored()
    front.faults.add(match="objects/b3", method="PUT", status=403, body=EXPIRED, after=2, times=None)
    said = node.refused(3, "mirror", SOURCE)
    assert "ExpiredToken" in said
    front.faults.clear()
    (source,) = node.run("mirror", SOURCE, "--json").json["sources"]
    assert source["moved_bytes"] < BIG_BYTES  # what was put stays
    assert "0 damaged" in node.run("mirror", "verify").out


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=503), id="503"),
        pytest.param(Fault(reset=True), id="reset", marks=pytest.mark.long),
        pytest.param(Fault(status=403, body=EXPIRED), id="expired"),
        pytest.param(Fault(slow_bytes_per_s=1000), id="slow", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_mount_goes_on_without_the_mirror(
    mirrored: Callable[[], Node], front: FaultyProxy, hub: HubServer, fault: Fault, when: str
) -> None:
    """before: already when the source is looked for; after: only when chunks are."""
    node = mirrored()
    mirrored().run("mirror", SOURCE)
    hub.reset()
    match = "" if when == "before" else "objects/b3"
    front.faults.add(Fault(**{**vars(fault), "match": match, "times": None}))
    done = node.run("mount", SOURCE, node.m)
    assert "warning" in done.err
    node.holds(BIG)
    node.run("unmount", node.m)
    node.check_cache()


def test_a_mirror_that_takes_nothing_does_not_stop_a_fill(
    mirrored: Callable[[], Node], front: FaultyProxy, hub: HubServer, tmp_path: Path
) -> None:
    node = mirrored()
    front.faults.add(match="objects/b3", method="PUT", status=507, times=None)
    done = node.run("mount", SOURCE, node.m)
    node.holds(BIG)
    assert "filling goes on without it" in done.err
    node.run("unmount", node.m)
    front.faults.clear()
    assert node.run("mirror", "ls", "--json").json["versions"] == []
    node.run("mirror", SOURCE)
    assert "0 damaged" in node.run("mirror", "verify").out


def test_what_is_new_is_not_looked_for_chunk_by_chunk(
    mirrored: Callable[[], Node], front: FaultyProxy, hub: HubServer
) -> None:
    """After a row of new chunks the next are sent at once; one that is there after all is not written again."""
    first = random.Random(11).randbytes(10 * CHUNK_BYTES)
    hub.commit("acme/wide", {"model.safetensors": first})
    node = mirrored()
    node.run("mirror", "hf://acme/wide")
    asked = [each for each in front.asked if "objects/b3" in each.path]
    looked = {each.path for each in asked if each.method == "HEAD"}
    put = [each.path for each in asked if each.method == "PUT"]
    assert len(put) == len(set(put)) == 12  # with the chunkmap and the manifest
    hub.commit("acme/wider", {"model.safetensors": random.Random(12).randbytes(30 * CHUNK_BYTES) + first})
    front.asked.clear()
    (source,) = node.run("mirror", "hf://acme/wider", "--json").json["sources"]
    assert source["moved_bytes"] == 30 * CHUNK_BYTES
    heads = [each for each in front.asked if each.method == "HEAD" and "objects/b3" in each.path]
    assert len(heads) < 40
    assert looked
    assert "0 damaged" in node.run("mirror", "verify").out
