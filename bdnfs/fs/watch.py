"""Waits for mounts to be taken away by somebody else."""

import select
from collections.abc import Set

import trio

from bdnfs.fs.mounts import mount_table


async def unmounted(mount_ids: Set[int]) -> None:
    """Return once none of these mounts is in this process's mount table any more."""
    # The kernel flags a change of the table as a priority event (proc_pid_mountinfo(5)); through an
    # epoll of its own, for trio waits for plain readability, which a file of /proc always has.
    with open("/proc/self/mountinfo", "rb", buffering=0) as table, select.epoll() as changes:  # noqa: ASYNC230
        changes.register(table.fileno(), select.EPOLLPRI)
        while any(mount.mount_id in mount_ids for mount in mount_table()):
            await trio.lowlevel.wait_readable(changes.fileno())
            changes.poll(0)
