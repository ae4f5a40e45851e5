"""The end of a job, whatever state it was in: its processes first, then what was for its run alone, then the record."""

import signal
import time
from collections.abc import Callable
from functools import partial

from trainer.engine import places
from trainer.engine.directory import JobDirectory, read_json
from trainer.engine.locks import is_held
from trainer.engine.processes import ProcessId
from trainer.engine.supervised import POLL_S, Supervised, joined
from trainer.errors import HomeError, TrainerError
from trainer.jobs.states import State
from trainer.jobs.steps import reach
from trainer.storage.scratch import clear_scratch, remove_tree

# What runs inside ends itself after the grace; this is for one that can't.
_MARGIN_S = 30.0
_RUN_END_S = 120.0
_RECORD_S = 60.0


class Ending:
    """Tells a runner to end its job: kindly, and after its grace by force. Never waits."""

    def __init__(self, directory: JobDirectory, grace_s: float) -> None:
        self._directory, self._grace_s = directory, grace_s
        self._told_s: float | None = None

    def press(self) -> None:
        """Do what is to be done now; call it again and again."""
        found = read_json(self._directory.run)
        if not found:
            return  # it is only starting; the lock is its
        runner = ProcessId(**found)
        if self._told_s is None:
            runner.send(signal.SIGTERM)
            self._told_s = time.monotonic()
        elif time.monotonic() > self._told_s + self._grace_s + _MARGIN_S:
            runner.send(signal.SIGKILL)


def end(job: Supervised, state: State, error: str = "", code: int | None = None) -> None:
    """Clear what is left of the run, then record the end: whoever reads it finds nothing of the job.

    Raises HomeError where it can't be recorded.
    """
    _end_run(job)
    error = joined(error, tidy(job))
    reach("ending:cleared")
    # Said first: whoever follows the log reads it out once the end is recorded.
    job.log.say(f"{state}{f': {error}' if error else ''}")
    _record_end(job, state, error, code)
    reach("ending:committed")


def tidy(job: Supervised) -> str:
    """Take away what was for the run alone; return what could not be."""
    problems = []
    clearings: tuple[Callable[[], object], ...] = (
        partial(clear_scratch, job.directory.path),
        partial(remove_tree, job.directory.workspace),
        partial(remove_tree, job.directory.hub),
        places.give_back,
    )
    for clear in clearings:
        try:
            clear()
        except (TrainerError, OSError) as error:
            problems.append(str(error))
    return joined(*problems)


def _end_run(job: Supervised) -> None:
    """Have nothing of a run left, whatever state it was in."""
    ends = Ending(job.directory, job.config.stop_grace_s)
    deadline_s = time.monotonic() + 2 * job.config.stop_grace_s + _RUN_END_S
    while is_held(job.directory.run_lock):
        if time.monotonic() > deadline_s:
            job.log.say(
                f"the job's processes could not be ended; {job.directory.run} says which one holds them"
            )
            return
        ends.press()
        time.sleep(POLL_S)


def _record_end(job: Supervised, state: State, error: str, code: int | None) -> None:
    """Record the end, tried again while the disk is full; the next supervisor tries after that."""
    deadline_s = time.monotonic() + _RECORD_S
    while True:
        try:
            job.store.move(job.id, state, error=error, exit_code=code)
        except HomeError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(1.0)
        else:
            return
