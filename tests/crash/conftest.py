"""The commands' nodes and Hub, for commands that are killed."""

from tests.commands.conftest import forker, hub, node, nodes, served

__all__ = ["forker", "hub", "node", "nodes", "served"]
