"""What a running job uses now: processor time and memory of its processes, its GPUs, its scratch."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from trainer.engine.directory import JobDirectory, read_json
from trainer.engine.plan import RunPlan
from trainer.engine.processes import ProcessId, descendants
from trainer.errors import JobError
from trainer.jobs.record import Job
from trainer.jobs.states import State

_TIMEOUT_S = 30.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class GpuUsage:
    """One GPU: how busy it is (percent), its memory used and in all (MiB), as nvidia-smi says."""

    index: int
    busy_percent: int
    memory_mib: int
    memory_total_mib: int


@dataclass(frozen=True)
class Usage:
    """cpu_cores: processors kept busy while it was looked at; the runner's and bdnfs's own are left out."""

    processes: int
    cpu_cores: float
    memory_bytes: int
    scratch_used_bytes: int | None
    gpus: tuple[GpuUsage, ...]


def usage(job: Job, directory: JobDirectory, over_s: float = 0.5) -> Usage:
    """Look at a running job for over_s; raise JobError where it does not run."""
    found = read_json(directory.run)
    runner = ProcessId(**found) if found else None
    if job.state is not State.RUNNING or runner is None or not runner.is_alive():
        raise JobError(f"job {job.id} is {job.state}; only a running job uses anything")
    before = _looked(runner.pid)
    began_s = time.monotonic()
    time.sleep(over_s)
    after = _looked(runner.pid)
    took_s = time.monotonic() - began_s
    ticks = sum(now - before.get(pid, (0, 0))[0] for pid, (now, _) in after.items())
    return Usage(
        processes=len(after),
        cpu_cores=round(max(0, ticks) / _TICKS_PER_S / took_s, 2),
        memory_bytes=sum(pages for _, pages in after.values()) * _PAGE_BYTES,
        scratch_used_bytes=_scratch_used_bytes(directory, next(iter(after), None)),
        gpus=_gpus(job.gpu_indices),
    )


def _looked(runner: int) -> dict[int, tuple[int, int]]:
    """Return the job's processes: by pid, the ticks used and the pages in memory."""
    found = {}
    for pid in descendants(runner):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"trainer.engine." in words or b"\0bdnfs\0" in words or b"bdnfs.session.runner" in words:
                continue
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[pid] = (int(fields[11]) + int(fields[12]), int(fields[21]))
        except (OSError, IndexError):
            continue
    return found


def _scratch_used_bytes(directory: JobDirectory, pid: int | None) -> int | None:
    """Return how much of the scratch is in use, seen through the eyes of one of the job's processes."""
    try:
        plan = RunPlan.read(directory.plan)
        return None if pid is None else shutil.disk_usage(f"/proc/{pid}/root{plan.scratch_location}").used
    except OSError:
        return None


def _gpus(indices: tuple[int, ...]) -> tuple[GpuUsage, ...]:
    program = shutil.which("nvidia-smi")
    if program is None or not indices:
        return ()
    query = "--query-gpu=index,utilization.gpu,memory.used,memory.total"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_usage(done.stdout, indices)


def parse_usage(text: str, indices: tuple[int, ...]) -> tuple[GpuUsage, ...]:
    """Return the GPUs with these indices in nvidia-smi's lines `0, 97, 40536, 81559`."""
    found = []
    for line in text.splitlines():
        numbers = [part.strip() for part in line.split(",")]
        if len(numbers) == 4 and all(number.isdigit() for number in numbers) and int(numbers[0]) in indices:
            found.append(GpuUsage(*(int(number) for number in numbers)))
    return tuple(found)
