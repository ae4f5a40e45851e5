"""Supervisors: started for each job that has not ended, found missing by whoever comes next."""

import os
import shutil
import subprocess
import sys

from trainer.config import TrainerConfig
from trainer.engine import places
from trainer.engine.directory import JobDirectory
from trainer.engine.locks import is_held
from trainer.jobs.store import Store
from trainer.scheduling import Gpu, LocalMachine, gpu_count

# They outlive this process; until it ends it is their parent, and waits for none of them.
_started: list["subprocess.Popen[bytes]"] = []


def start_supervisor(config: TrainerConfig, job_id: str) -> None:
    """Start a supervisor for a job. Where there is one already the new one ends at once."""
    directory = JobDirectory(config.job_directory(job_id))
    for process in _started:
        process.poll()
    with directory.supervisor_log.open("ab") as log:
        _started.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", "trainer.engine.supervisor", job_id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TRAINER_HOME": str(config.home)},
                cwd="/",
                start_new_session=True,
            )
        )


def sweep(config: TrainerConfig, store: Store, *, but: str = "") -> list[str]:
    """Start a supervisor for every job that has none and needs one; clear what a killed push left.

    Returns the jobs' ids. A job far back in the queue needs none yet.
    """
    revived = []
    # Only the order matters here, not which GPU is of which kind.
    gpus = [Gpu(index) for index in range(gpu_count(config.gpus))]
    machine = LocalMachine(store, config.slots, gpus)
    for job in store.jobs(active=True):
        directory = JobDirectory(config.job_directory(job.id))
        if job.id != but and not is_held(directory.supervisor_lock) and machine.is_near(job):
            directory.make()
            start_supervisor(config, job.id)
            revived.append(job.id)
    _clear_unrecorded(config, store)
    if not store.jobs(active=True):
        places.give_back()
    return revived


def _clear_unrecorded(config: TrainerConfig, store: Store) -> None:
    """Remove the directories of pushes that were killed before their job was recorded."""
    try:
        names = os.listdir(config.home / "jobs")
    except FileNotFoundError:
        return
    known = {job.id for job in store.jobs()}
    for name in names:
        directory = JobDirectory(config.home / "jobs" / name)
        # Whoever pushes holds the lock until its job is recorded: look, then look again at what is recorded.
        if name in known or is_held(directory.supervisor_lock) or not directory.supervisor_lock.exists():
            continue
        if name not in {job.id for job in store.jobs()}:
            shutil.rmtree(directory.path, ignore_errors=True)
