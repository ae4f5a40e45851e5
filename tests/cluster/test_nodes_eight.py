"""Eight real nodes that stand in a list, without Redis: cold, two killed at half, everyone's cable pulled in turn."""

import os
import random
from collections.abc import Iterator

import pytest

from tests.cluster.hosts import CHUNK_BYTES, PORT, Cluster, ClusterNode, all_at_once, open_cluster
from tests.commands.node import Command, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
NODES = 8
MIRROR_BITS = 16_000_000
LIMIT_S = 180.0
_dice = random.Random(56)
FILES = {
    name: {"config.json": b"{}", "model.safetensors": _dice.randbytes(80 * CHUNK_BYTES + 4097)}
    for name in ("cold", "killed", "cut")
}
SIZE = sum(map(len, FILES["cold"].values()))


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[ClusterNode]]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with open_cluster() as cluster:
        for name, files in FILES.items():
            cluster.hub.commit(f"acme/{name}", files)
        cluster.mirrored(f"hf://acme/{name}" for name in FILES)
        cluster.network.hosts["mirror"].cap(MIRROR_BITS)
        made = [cluster.add() for _ in range(NODES)]
        members = [node.address for node in made]
        for node in made:
            node.configure(cluster={"redis": None, "members": members, "listen": f"0.0.0.0:{PORT}",
                                    "advertise": node.address})  # fmt: skip
        cluster.serve(made)
        cluster.settle(made)
        yield made


def _half(cluster: Cluster, since: int) -> None:
    until(lambda: cluster.mirror.chunk_bytes - since >= SIZE / 2, "half of it to have left the mirror")


def test_eight_from_a_list_take_it_once(nodes: list[ClusterNode]) -> None:
    with nodes[0].cluster.counted() as counted:
        all_at_once([node.fetch("hf://acme/cold") for node in nodes], LIMIT_S)
    assert SIZE <= counted.mirror_bytes <= 1.1 * SIZE, counted
    assert counted.hub_bytes == 0
    for node in nodes:
        node.tree_holds(FILES["cold"])


def test_two_of_eight_are_killed_at_half(nodes: list[ClusterNode]) -> None:
    cluster = nodes[0].cluster
    with cluster.counted() as counted:
        since = cluster.mirror.chunk_bytes
        commands = [node.fetch("hf://acme/killed") for node in nodes]
        _half(cluster, since)
        for node in nodes[2:4]:
            node.kill()
        all_at_once(commands, LIMIT_S)
    assert counted.mirror_bytes <= (1 + 2 * 2 / NODES) * SIZE, counted
    for node in nodes:
        node.tree_holds(FILES["killed"])
    cluster.serve(nodes[2:4])


def test_every_cable_is_pulled_in_turn(nodes: list[ClusterNode]) -> None:
    """Content is what this is about: whoever is cut off gets what it lacks from where it can."""
    commands = [node.fetch("hf://acme/cut") for node in nodes]
    for number, node in enumerate(nodes):
        others = commands[:number] + commands[number + 1 :]
        node.host.cut()
        _others_go_on(node.cluster, others)
        node.host.heal()
    all_at_once(commands, LIMIT_S)
    for node in nodes:
        node.tree_holds(FILES["cut"])


def _others_go_on(cluster: Cluster, others: list[Command]) -> None:
    """Wait until the mirror has sent a little more, or everyone else has all."""
    since = cluster.mirror.chunk_bytes
    until(
        lambda: (
            cluster.mirror.chunk_bytes - since > SIZE / 40
            or all(command.process.poll() is not None for command in others)
        ),
        "the others to go on",
        LIMIT_S,
    )
