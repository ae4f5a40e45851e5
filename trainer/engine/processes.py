"""Processes named so that a pid which was given away again is never taken for the old one."""

import contextlib
import ctypes
import os
import signal
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
# Linux: include/uapi/linux/prctl.h.
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class ProcessId:
    """pid, and when it began in clock ticks since boot: together unique until the machine restarts."""

    pid: int
    began_ticks: int
    boot: str

    def is_alive(self) -> bool:
        return identify(self.pid) == self

    def send(self, number: int) -> bool:
        """Send a signal to exactly this process; say whether it was still there."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive():
                return False
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a process that is there, and not a zombie; else None."""
    try:
        # Fields 3 and 22 of proc_pid_stat(5); the name before them may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, IndexError):
        return None
    return None if fields[0] in ("Z", "X") else ProcessId(pid, int(fields[19]), boot)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> bool:
    """Have the kernel send number to this process when its parent ends; say whether that is still `parent`."""
    _libc.prctl(_SET_PDEATHSIG, number, 0, 0, 0)
    return os.getppid() == parent


def adopt_orphans() -> None:
    """Become the parent of those whose parent ends, among this process's descendants."""
    _libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int) -> list[int]:
    """Return the processes below pid, as far as they show."""
    found: list[int] = []
    todo = [pid]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                children = Path(f"/proc/{parent}/task/{task}/children").read_text().split()
                found += [int(child) for child in children]
                todo += [int(child) for child in children]
    return found
