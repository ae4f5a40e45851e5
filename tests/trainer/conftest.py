"""A trainer's home for each test, on a node of its own; the commands' Hub for all."""

from collections.abc import Iterator

import pytest

from tests.commands.conftest import forker, hub, node, nodes, served
from tests.commands.node import Node
from tests.trainer.home import Home
from tests.trainer.stores import bucket, gcs, gcs_server

__all__ = ["bucket", "forker", "gcs", "gcs_server", "hub", "node", "nodes", "served"]


@pytest.fixture
def home(node: Node) -> Iterator[Home]:
    made = Home(node)
    yield made
    made.end()
