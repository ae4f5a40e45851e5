"""Pins for mounts that not everybody can see: in a PID namespace of its own, a process that holds them.

A native mount needs no process where the evictor finds it in the mount tables. In a container nobody
outside of its own PID namespace may be able to look there, so there a keeper holds the pins until no
mount of the snapshots is left. It dies with the container, and so do they.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bdnfs.cache.layout import Layout
from bdnfs.cache.pins import Pin
from bdnfs.core.errors import MountError
from bdnfs.fs.mounts import namespaces, sees_every_process
from bdnfs.session.children import Child, environment_without, remember, says_in_time

_START_S = 60.0
# A change of our own table shows at once; one in another namespace has to be looked for.
_LOOK_S = 2.0


@contextmanager
def kept(layout: Layout, snapshot_ids: Iterable[str]) -> Iterator[None]:
    """Pin the snapshots, from before what is inside mounts them, until their last mount has gone.

    Does nothing where every process can be seen. Raises MountError where the keeper doesn't start.
    """
    ids = sorted(set(snapshot_ids))
    if not ids or sees_every_process():
        yield
        return
    keeper = Child(
        [sys.executable, "-m", __name__, str(layout.root), *ids],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment_without(),
        cwd="/",
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    remember(keeper)
    with keeper.stdin, keeper.stdout:
        if not says_in_time(keeper, _START_S) or keeper.stdout.readline() != b"holding\n":
            keeper.kill()
            raise MountError(
                f"{layout.pins}: the process that is to hold the pins of this mount did not start; try again"
            )
        yield


def main(argv: list[str]) -> int:
    """Hold the pins of the snapshots argv[2:] of the cache argv[1]: until stdin ends, and the mounts."""
    layout = Layout(Path(argv[1]))
    try:
        pins = {name: Pin(layout.pins / name, time.monotonic() + _START_S) for name in argv[2:]}
    except TimeoutError:
        return 1
    os.write(1, b"holding\n")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (1, 2):
        os.dup2(null, fd)
    os.read(0, 1)
    with open("/proc/self/mountinfo", "rb", buffering=0) as table:
        changes = select.poll()
        changes.register(table.fileno(), select.POLLPRI)
        while pins:
            scan = namespaces()
            for name in [] if not scan.complete else list(pins):
                # In `trees`, or renamed into `trash` under its mount.
                if not any(f"/{name}" in root for root in scan.roots):
                    pins.pop(name).close()
            if pins:
                changes.poll(_LOOK_S * 1000)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
