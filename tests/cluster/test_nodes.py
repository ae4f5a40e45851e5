"""Four real nodes, each on a link of its own: cold, warm, late; owners, networks, Redis that die; owners that are full.

In each: the content is right byte for byte, everything ends, and what the mirror sends is the snapshot once where
nobody died, and at most 1 + 2/N of it where somebody did. Chunks are 64 KiB, a snapshot some forty of them.
"""

import os
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cluster.hosts import (
    CHUNK_BYTES,
    PORT,
    Cluster,
    ClusterNode,
    Counted,
    all_at_once,
    open_cluster,
)
from tests.commands.node import Command, until
from tests.storage.disks import Disks, fill_up

NODES = 4
# Of the mirror's link: slow enough that something can happen while nodes fill, and no slower.
MIRROR_BITS = 16_000_000
MODEL_BYTES = 36 * CHUNK_BYTES + 4097
_dice = random.Random(55)
FILES = {
    name: {
        "config.json": b'{"name": "%9s"}' % name.encode(),
        "model.safetensors": _dice.randbytes(MODEL_BYTES),
        "tokenizer.json": _dice.randbytes(CHUNK_BYTES + 1),
    }
    for name in (
        ["cold", "late", "killed", "cut", "redis", "flapping", "full", "pressed", "garbage", "refused"]
    )
}
SIZE = sum(map(len, FILES["cold"].values()))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with open_cluster() as opened:
        for name, files in FILES.items():
            opened.hub.commit(f"acme/{name}", files)
        opened.mirrored(source(name) for name in FILES)
        opened.network.hosts["mirror"].cap(MIRROR_BITS)
        for _ in range(NODES):
            opened.add()
        yield opened


@pytest.fixture
def nodes(cluster: Cluster) -> list[ClusterNode]:
    """The four nodes, who know each other; whatever the last test did to one of them is made good."""
    found = cluster.nodes[:NODES]
    for node in found:
        node.host.heal()
    cluster.restore(found)
    return found


def source(name: str) -> str:
    return f"hf://acme/{name}"


def fills(nodes: list[ClusterNode], name: str) -> None:
    """Have all of these nodes fetch it at once, and look at every byte."""
    all_at_once([node.fetch(source(name)) for node in nodes])
    holds(nodes, name)


def holds(nodes: list[ClusterNode], name: str) -> None:
    for node in nodes:
        node.tree_holds(FILES[name])


def once(counted: Counted) -> None:
    """The mirror has sent the snapshot once, and upstream nothing."""
    # A busy machine may hold a node up for so long that it is taken for dead: some chunks then come twice.
    assert SIZE <= counted.mirror_bytes <= 1.1 * SIZE, counted
    assert counted.hub_bytes == 0, counted


def at_most(counted: Counted, times: float = 1 + 2 / NODES, fills: Sequence[Command] = ()) -> None:
    said = "\n".join(fill.err for fill in fills)
    assert counted.mirror_bytes <= times * SIZE, f"{counted}\n{said}"
    assert counted.hub_bytes == 0, counted


def never(counted: Counted) -> None:
    assert (counted.mirror_bytes, counted.hub_bytes) == (0, 0), counted


def until_half(cluster: Cluster, since: int) -> None:
    until(lambda: cluster.mirror.chunk_bytes - since >= SIZE / 2, "half of it to have left the mirror")


def test_a_cold_cluster_then_a_warm_one(cluster: Cluster, nodes: list[ClusterNode]) -> None:
    with cluster.counted() as counted:
        fills(nodes[:3], "cold")
    once(counted)
    with cluster.counted() as counted:
        fills(nodes[3:], "cold")  # one that comes late
        nodes[0].run("cache", "evict")  # and one that lost everything
        assert not list((nodes[0].cache / "blobs").glob("*/*"))
        fills(nodes[:1], "cold")
    never(counted)


def test_one_that_comes_late_while_the_others_fill(cluster: Cluster, nodes: list[ClusterNode]) -> None:
    with cluster.counted() as counted:
        since = cluster.mirror.chunk_bytes
        commands = [node.fetch(source("late")) for node in nodes[:3]]
        until_half(cluster, since)
        all_at_once([*commands, nodes[3].fetch(source("late"))])
    once(counted)
    holds(nodes, "late")


def test_an_owner_is_killed_at_half(cluster: Cluster, nodes: list[ClusterNode]) -> None:
    with cluster.counted() as counted:
        since = cluster.mirror.chunk_bytes
        commands = [node.fetch(source("killed")) for node in nodes]
        until_half(cluster, since)
        # Without a node on its machine from the start a fill knows no peer.
        until(lambda: "fetching" in commands[2].err, "its own fill to have begun")
        nodes[2].kill()
        all_at_once(commands)  # its own fill, too, goes on without it
    at_most(counted, fills=commands)
    holds(nodes, "killed")


def test_the_network_of_one_is_cut_and_heals(cluster: Cluster, nodes: list[ClusterNode]) -> None:
    with cluster.counted() as counted:
        since = cluster.mirror.chunk_bytes
        commands = [node.fetch(source("cut")) for node in nodes]
        until_half(cluster, since)
        nodes[1].host.cut()
        others = [command for number, command in enumerate(commands) if number != 1]
        all_at_once(others)  # without it
        nodes[1].host.heal()
        all_at_once(commands)
    at_most(counted, fills=commands)
    holds(nodes, "cut")


def test_redis_is_killed_and_restarted(cluster: Cluster, nodes: list[ClusterNode]) -> None:
    with cluster.counted() as counted:
        since = cluster.mirror.chunk_bytes
        commands = [node.fetch(source("redis")) for node in nodes]
        until_half(cluster, since)
        cluster.redis.kill()
        all_at_once(commands)
        names = {node.address for node in nodes}
        assert all(node.members() == names for node in nodes)
        cluster.redis.start()
    once(counted)
    holds(nodes, "redis")
    cluster.settle(nodes)


def test_members_come_and_go(cluster: Cluster, nodes: list[ClusterNode]) -> None:
    """One of four is told to leave, comes, is killed, comes, while the others fill."""
    with cluster.counted() as counted:
        commands = [node.fetch(source("flapping")) for node in nodes[:3]]
        for end in (nodes[3].leave, nodes[3].kill):
            end()
            nodes[3].serve()
        all_at_once(commands)
    at_most(counted, 1 + 2 * 2 / NODES, commands)  # it goes twice
    holds(nodes[:3], "flapping")


def test_an_owner_whose_disk_is_full(cluster: Cluster, nodes: list[ClusterNode], tmp_path: Path) -> None:
    with _disk(tmp_path) as disk:
        cluster.serve_with(nodes[3:], directory=str(disk.tmpfs(64).at))
        cluster.settle(nodes)
        fill_up(nodes[3].directory)
        with cluster.counted() as counted:
            fills(nodes[:3], "full")
        at_most(counted)
        assert nodes[3].share_bytes() <= CHUNK_BYTES
        cluster.leave(nodes[3:])


def test_a_peer_that_sends_garbage(cluster: Cluster, nodes: list[ClusterNode]) -> None:
    rogue = nodes[3]
    rogue.kill()
    with _liar(rogue) as asked, cluster.counted() as counted:
        commands = [node.fetch(source("garbage")) for node in nodes[:3]]
        all_at_once(commands)
    assert asked  # it is still a member, and owns a fourth
    at_most(counted)
    holds(nodes[:3], "garbage")
    for command in commands:
        assert f"the peer {rogue.address} is not asked" in command.err


def test_a_node_with_another_token(cluster: Cluster, nodes: list[ClusterNode]) -> None:
    for path in ("/v1/node", "/metrics", _chunk_path(cluster)):
        assert nodes[0].ask(path, token="")[0] == 401
        assert nodes[0].ask(path, token="another")[0] == 401
    cluster.serve_with(nodes[3:], token="another")
    with cluster.counted() as counted:
        commands = [node.fetch(source("refused")) for node in nodes]
        all_at_once(commands)
    holds(nodes, "refused")
    # For the others it is as good as dead, and it gets everything from the mirror.
    at_most(counted, 2 + 2 / NODES)
    assert cluster.token not in commands[3].err + commands[3].out


def test_a_foreign_tenant(cluster: Cluster, nodes: list[ClusterNode]) -> None:
    fills(nodes[:1], "refused")
    path, whole = _chunk_path(cluster), {"Range": f"bytes=0-{CHUNK_BYTES - 1}"}
    assert nodes[0].ask(path, **whole)[0] in (200, 206)
    assert nodes[0].ask(path.replace("/default/", "/other/"), **whole)[0] == 403
    cluster.serve_with(nodes[3:], tenant="other")
    assert nodes[3].ask(path, **whole)[0] == 403
    # Its own mirror has nothing: all comes from upstream, and nothing from those who have it.
    with cluster.counted() as counted:
        command = nodes[3].fetch(source("refused"))
        all_at_once([command])
    holds(nodes[3:], "refused")
    assert counted.hub_bytes == SIZE
    assert "peer" not in command.err.rpartition("fetched from")[2]


def test_owners_whose_shares_are_tiny(cluster: Cluster, nodes: list[ClusterNode]) -> None:
    """Four chunks fit into each share, and each owns some eleven: what the others hold meanwhile counts, too."""
    cluster.serve_with(nodes, cluster={"share": 4 * CHUNK_BYTES})
    cluster.settle(nodes)
    with cluster.counted() as counted:
        fills(nodes, "pressed")
    at_most(counted)
    assert all(node.share_bytes() <= 4 * CHUNK_BYTES for node in nodes)


# ---- what the scenarios need ---------------------------------------------------------------------


@contextmanager
def _disk(place: Path) -> Iterator[Disks]:
    disks = Disks(place)
    try:
        yield disks
    finally:
        disks.close()


def _chunk_path(cluster: Cluster) -> str:
    """The path of a whole chunk of the default tenant that the mirror has."""
    objects = (cluster.place / "buckets").rglob("*")
    found = next(path for path in objects if len(path.name) == 64 and path.stat().st_size == CHUNK_BYTES)
    return f"/v1/chunks/default/weights/{found.name}"


@contextmanager
def _liar(node: ClusterNode) -> Iterator[list[str]]:
    """Answer every question for a chunk on the node's address with bytes that are none of it; yield what was asked."""
    asked: list[str] = []

    class Lying(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            first, _, last = self.headers.get("Range", "bytes=0-9").removeprefix("bytes=").partition("-")
            body = os.urandom(int(last) - int(first) + 1)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Bdnfs-Tier", "share")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = node.host.inside(lambda: ThreadingHTTPServer((node.host.address, PORT), Lying))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
