"""Starts `bdnfs` by forks, as tests.commands.forker does, with what a node of a cluster imports there already.

Whoever asked for forks is gone, however that ended: so are they.
"""

import contextlib
import os
import signal
from pathlib import Path

import bdnfs.cli.node
import bdnfs.cluster.client
import bdnfs.cluster.leases
import bdnfs.session.node
import bdnfs.tiers.peer  # noqa: F401
from tests.commands.forker import serve_forks

if __name__ == "__main__":
    serve_forks()
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
