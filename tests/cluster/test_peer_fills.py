"""The commands of two nodes of a cluster, whose peers are real: what is named peer, and in which commands."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, forker, hub, nodes, served
from tests.commands.node import Node, until
from tests.contract.servers import free_port

__all__ = ["forker", "hub", "nodes", "served"]

SOURCE = "hf://acme/big"


class Pair:
    """Two nodes, both at their parts, and a mirror that has the source. addresses: where each listens."""

    def __init__(self, directory: Path, nodes: Callable[[], Node]) -> None:
        self.first, self.second = nodes(), nodes()
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        for node, address in zip((self.first, self.second), self.addresses, strict=True):
            node.configure(
                mirror=str(directory),
                cluster={"members": self.addresses, "listen": address, "advertise": address, "share": "1GiB"},
            )
        self.first.run("mirror", SOURCE)
        self.running = [node.start("node", "--no-nginx") for node in (self.first, self.second)]
        for command in self.running:
            until(lambda command=command: "listening" in command.out, "a node to listen")

    def said(self, number: int) -> dict[str, Any]:
        """What a node says of itself."""
        with urlopen(f"http://{self.addresses[number]}/v1/node", timeout=20) as answer:
            return dict(msgspec.json.decode(answer.read()))


@pytest.fixture
def pair(hub: HubServer, nodes: Callable[[], Node], tmp_path: Path) -> Iterator[Pair]:
    (tmp_path / "mirror").mkdir()
    made = Pair(tmp_path / "mirror", nodes)
    hub.reset()
    yield made
    for command in made.running:
        command.signal(15)
        command.wait()
    assert hub.bytes_sent == 0


def test_every_command_asks_the_peers_first(pair: Pair) -> None:
    first, second = pair.first, pair.second
    (planned,) = first.run("plan", SOURCE, "--json").json["sources"]
    assert planned["tier_bytes"] == {"peer": BIG_BYTES}
    # Whole, in one process.
    done = first.run("prefetch", SOURCE)
    assert "fetched from mirror" in done.err
    # What they own is in their shares now. Beside a mount's FUSE, in its daemon:
    second.run("mount", "--lazy", "--no-fill", SOURCE, second.m)
    second.holds(BIG)
    until(lambda: sum(pair.said(1)["tiers"].values()) >= BIG_BYTES, "its node to be told")
    before = pair.said(1)["tiers"]
    assert set(before) <= {"peer", "mirror"}
    second.run("unmount", second.m)
    # A volume's own source, by the same digests.
    volume = first.run("mirror", SOURCE).out.split(" is ")[1].split()[0]
    done = second.run("prefetch", volume, "--progress=json")
    assert f'"tier_bytes": {{"peer": {BIG_BYTES}}}' in done.err
    second.run("mount", volume, second.m)
    second.holds(BIG)
    second.run("unmount", second.m)
    until(lambda: pair.said(1)["tiers"]["peer"] >= before.get("peer", 0) + BIG_BYTES, "its node to be told")
    got = [pair.said(number)["serving"]["bytes"].get("mirror", 0) for number in range(2)]
    assert sum(got) == BIG_BYTES


def test_run_fills_from_peers(pair: Pair) -> None:
    spec = pair.second.spec({"source": SOURCE, "mount_location": str(pair.second.m)})
    done = pair.second.run("run", "--progress=json", spec, "--", "cat", str(pair.second.m / "config.json"))
    assert done.out.encode() == BIG["config.json"]
    assert '"origin"' not in done.err
    assert '"peer": ' in done.err
