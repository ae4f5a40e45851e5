"""What others do with a job: follow its log, wait for its end, ask for that."""

import time
from collections.abc import Callable

from trainer.config import TrainerConfig
from trainer.engine.directory import JobDirectory
from trainer.engine.log import Follower
from trainer.engine.pauses import Pauses
from trainer.engine.supervising import sweep
from trainer.errors import JobError, JobFailedError
from trainer.jobs.record import Job
from trainer.jobs.states import State
from trainer.jobs.store import Store

# A line of the log is shown no later than this.
_LOG_LATE_S = 0.5
_SWEEP_S = 5.0
# Beyond a job's grace: what a supervisor needs to begin, and to clear what is left.
_STOP_MARGIN_S = 120.0


def follow(config: TrainerConfig, store: Store, job_id: str, show: Callable[[str], None]) -> Job:
    """Show a job's log, from its beginning, until the job has ended; return it as it ended.

    Raises JobFailedError, with why, where it did not complete.
    """
    follower = Follower(JobDirectory(config.job_directory(job_id)).log)
    swept_s, pauses = time.monotonic(), Pauses(_LOG_LATE_S)
    while True:
        ended = store.state(job_id)[0].final  # first this, then the log: nothing is written after the end
        for line in follower.more():
            show(line)
            pauses.news()
        if ended:
            break
        swept_s = _swept(config, store, swept_s)
        pauses.pause()
    job = store.job(job_id)
    if job.state is not State.COMPLETED:
        raise JobFailedError(f"job {job_id} is {job.state}{f': {job.error}' if job.error else ''}")
    return job


def wait(config: TrainerConfig, store: Store, job_id: str, timeout_s: float | None) -> Job:
    """Wait until a job has ended; return it; raise JobError where it has not after timeout_s."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    swept_s, pauses = time.monotonic(), Pauses()
    while not (state := store.state(job_id)[0]).final:
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise JobError(f"job {job_id} is still {state} after {timeout_s:g} s")
        swept_s = _swept(config, store, swept_s)
        pauses.pause()
    return store.job(job_id)


def stop(config: TrainerConfig, store: Store, job_id: str) -> Job:
    """Ask for a job's end, and wait for it. Raises JobError for a job that has ended already."""
    state = store.ask_to_stop(job_id)
    if state.final:
        raise JobError(f"job {job_id} has ended already: it is {state}")
    sweep(config, store)
    return wait_for_stop(config, store, job_id)


def wait_for_stop(config: TrainerConfig, store: Store, job_id: str) -> Job:
    """Wait for the end of a job that was asked to end, no longer than that may take."""
    return wait(config, store, job_id, 2 * config.stop_grace_s + _STOP_MARGIN_S)


def _swept(config: TrainerConfig, store: Store, swept_s: float) -> float:
    if time.monotonic() < swept_s + _SWEEP_S:
        return swept_s
    sweep(config, store)
    return time.monotonic()
