"""What the figures were measured on: the machine, its software, its disk's latency."""

import os
import platform
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT

_SYNCS = 100
_SYNC_BYTES = 4096
_PACKAGES = ("bdnfs", "click", "lmdb", "msgspec", "PyYAML", "pyfuse3", "torch", "transformers", "safetensors")


def machine_facts(directory: Path) -> dict[str, Any]:
    """Return what a reader of the figures needs to judge them; directory lies on the disk in question."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "filesystem": _filesystem(directory),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "load_average": os.getloadavg()[0],
    }


def fsync_latency(directory: Path) -> dict[str, float]:
    """Return median_s and p99_s of 4 KiB writes, each followed by fsync, to one file in directory."""
    took = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for index in range(_SYNCS):
            os.pwrite(file.fileno(), os.urandom(_SYNC_BYTES), index * _SYNC_BYTES)
            began_s = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began_s)
    return {"median_s": statistics.median(took), "p99_s": sorted(took)[_SYNCS * 99 // 100]}


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _filesystem(directory: Path) -> str:
    """Return the type of the filesystem that directory lies on."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
