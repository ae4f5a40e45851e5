"""Serving others comes after whatever else this machine does: CPU and disk only when nobody else wants them."""

import ctypes
import os
import platform
from collections.abc import Iterable
from contextlib import suppress

_NICE, _NICE_LAST = 10, 19
# Linux: include/uapi/linux/ioprio.h: best effort, the last of eight.
_IOPRIO_BEST_EFFORT_7 = 2 << 13 | 7
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
_WHO_PROCESS = 1


def lower() -> bool:
    """Make this thread, and what it starts from now on, give way; call it before there are others.

    Returns whether it may be given yet less for a while (`yield_all`): not everybody may take that back.
    """
    comes_back = False
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE + 1)
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
        comes_back = True
    if not comes_back:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, _NICE_LAST)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _IOPRIO_BEST_EFFORT_7)
    return comes_back


def yield_all(pids: Iterable[int], *, idle: bool) -> None:
    """Give processes only what CPU nobody else wants, or end that."""
    policy = os.SCHED_IDLE if idle else os.SCHED_OTHER
    for pid in pids:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):
                    os.sched_setscheduler(int(thread), policy, os.sched_param(0))
