"""A mount that stays as it is, half here and served by FUSE, until the test lets it be handed off."""

import hashlib
import os
from collections.abc import Iterator

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import forker, hub, node, nodes, served  # noqa: F401
from tests.commands.node import Node, until
from tests.readers.contents import HELD, files

REPO = "acme/read"
# So slow that it is not here in the hour that a test may take, fast enough not to count as dead.
HELD_BYTES_PER_S = 40e3


class Held:
    """The mount at node.m, whole only once it is let go."""

    def __init__(self, node: Node, hub: HubServer) -> None:  # noqa: F811
        self.node, self.hub = node, hub

    def mount(self, served_files: dict[str, bytes] | None = None, pace_bytes_per_s: float = 0) -> None:
        """Mount it lazily; pace_bytes_per_s: how fast each of the other files comes, 0 for at once."""
        self.hub.commit(REPO, files() if served_files is None else served_files)
        self.hub.faults.add(match=f"/cdn/.*/{HELD}", times=None, slow_bytes_per_s=HELD_BYTES_PER_S)
        if pace_bytes_per_s:
            self.hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=pace_bytes_per_s)
        self.node.run("mount", "--lazy", f"hf://{REPO}", self.node.m)
        assert self.node.shown() == "fuse"

    def let_go(self) -> None:
        """Let the rest come, and return when everything is native."""
        self.hub.faults.clear()
        self.hub.stop()  # what trickles goes on at another try
        self.hub.start()
        self.node.run("wait", self.node.m)
        assert self.node.shown() == "native"

    def unmount(self) -> None:
        self.node.run("unmount", self.node.m)
        until(lambda: not self.node.daemons(), "the daemon to end")
        self.node.clean()


@pytest.fixture
def held(node: Node, hub: HubServer) -> Iterator[Held]:  # noqa: F811
    yield Held(node, hub)
    hub.faults.clear()


def seed_of(request: pytest.FixtureRequest) -> str:
    """Return the seed of a test: its name, or with --long another one every time."""
    given = os.environ.get("BDNFS_SEED")
    fresh = os.urandom(8).hex() if request.config.getoption("--long") else request.node.nodeid
    return given or hashlib.sha256(fresh.encode()).hexdigest()[:16]
