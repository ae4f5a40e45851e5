"""Whole processes, timed from outside: from exec to exit, with the memory they took at most."""

import ctypes
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SET_CHILD_SUBREAPER = 36  # Linux: include/uapi/linux/prctl.h
_SAID_BYTES_MAX = 4000


class BenchmarkError(Exception):
    """Something did not work; the message is for whoever started the benchmark."""


@dataclass(frozen=True)
class Ended:
    """One process: seconds from exec to exit, and its largest resident set.

    The kernel begins the latter with what the parent had at the fork: the parent must be small.
    """

    seconds: float
    peak_rss_bytes: int
    output: str


def timed(command: Sequence[str], environment: Mapping[str, str]) -> Ended:
    """Run command to its end; raise BenchmarkError, with what it said, where it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=errors
        )
        try:
            # wait4, not wait: the kernel's own account of the process comes with it.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        seconds = time.perf_counter() - began_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _SAID_BYTES_MAX))
            said = errors.read().decode(errors="replace").strip()
            raise BenchmarkError(
                f"`{' '.join(command)}` ended with exit code {process.returncode}; it said:\n{said}"
            )
        output.seek(0)
        return Ended(seconds, usage.ru_maxrss * 1024, output.read().decode(errors="replace"))


def adopt_orphans() -> None:
    """Become the parent of daemons that descendants leave behind, so that they can be waited for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise BenchmarkError(f"daemons can't be adopted ({os.strerror(code)}): no PR_SET_CHILD_SUBREAPER")


def children() -> set[int]:
    """Return the pids of this process's children, adopted ones included."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in listed.split()}


def reap(pid: int, timeout_s: float) -> int:
    """Wait for a child to end; return its largest resident set in bytes; BenchmarkError after timeout_s."""
    fd = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([fd], [], [], timeout_s)
    finally:
        os.close(fd)
    if not ended:
        raise BenchmarkError(f"the daemon, pid {pid}, still runs {timeout_s:g} s after its mount was whole")
    _, _, usage = os.wait4(pid, 0)
    return usage.ru_maxrss * 1024
