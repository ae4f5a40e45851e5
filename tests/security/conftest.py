"""The same Hub and nodes as the commands are tested with."""

from tests.commands.conftest import forker, hub, node, nodes, served

__all__ = ["forker", "hub", "node", "nodes", "served"]
