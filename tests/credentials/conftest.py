"""The Hub and nodes of the commands, and servers that lend credentials."""

from collections.abc import Iterator

import pytest

from tests.commands.conftest import forker, hub, node, nodes, served
from tests.credentials.servers import StsServer

__all__ = ["forker", "hub", "node", "nodes", "served", "sts"]


@pytest.fixture
def sts() -> Iterator[StsServer]:
    with StsServer() as server:
        yield server
