"""What a process has of this machine, as the kernel counts it."""

import os
from pathlib import Path


def rss_bytes(pid: int | str = "self") -> int:
    """Return the memory that is really in use, what is shared with other processes left out."""
    _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/task"))
