"""A Hub for the session, a node for each test. What a test leaves is taken away, and is its failure."""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.forker import Forker
from tests.commands.node import TOKEN, Node

CHUNK = 8 << 20
_dice = random.Random(2026)

CONFIG = b'{"architectures": ["Tiny"]}\n'
TINY = {"config.json": CONFIG, "model.safetensors": _dice.randbytes(70_000), "empty.txt": b""}
# Three chunks in one file, the last one short.
BIG = {"config.json": CONFIG, "model.safetensors": _dice.randbytes(2 * CHUNK + 12_345)}
BIG_BYTES = sum(map(len, BIG.values()))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(served: HubServer) -> Iterator[HubServer]:
    """The Hub: acme/tiny, acme/big, and a gated acme/gated that only the planted token opens."""
    served.start()
    served.commit("acme/tiny", TINY)
    served.commit("acme/big", BIG)
    served.commit("acme/gated", TINY)
    served.repository("acme/gated").gated = True
    served.token(TOKEN, accepted=["acme/gated"])
    served.reset()
    yield served
    served.faults.clear()
    served.expire_links()


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    started = Forker()
    yield started
    started.close()


@pytest.fixture
def nodes(hub: HubServer, forker: Forker) -> Iterator[Callable[..., Node]]:
    """Return a function that makes a node."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting for real needs root and /dev/fuse")
    made: list[Node] = []

    def make(user: int = 0) -> Node:
        # Not below pytest's own directory, which only root may enter.
        place = Path(tempfile.mkdtemp(prefix="bdnfs-node-", dir="/var/tmp"))
        place.chmod(0o755)
        os.chown(place, user, user)
        made.append(Node(place, hub.url, forker, user))
        return made[-1]

    yield make
    for node in made:
        node.end()
    hub.faults.clear()
    for node in made:
        node.no_secret_in_files()
        node.check_cache()
        node.remove()


@pytest.fixture
def node(nodes: Callable[..., Node]) -> Node:
    return nodes()
