"""Starts `bdnfs` by forks, as tests.commands.forker does, with what a node of a cluster imports there already."""

import bdnfs.cli.node
import bdnfs.cluster.client
import bdnfs.cluster.leases
import bdnfs.session.node
import bdnfs.tiers.peer  # noqa: F401
from tests.commands.forker import serve_forks

if __name__ == "__main__":
    serve_forks()
