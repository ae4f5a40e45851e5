"""RUNNING: the job's commands run, its checkpoints go up; then the rest of those, and what is said of its end."""

import contextlib
import signal
import time
from contextlib import ExitStack
from typing import NamedTuple

from trainer.engine import checkpointing
from trainer.engine.delivery import DeliveryError, StopRequestedError, bdnfs_command, call
from trainer.engine.directory import read_json
from trainer.engine.ending import Ending
from trainer.engine.locks import is_held
from trainer.engine.log import last_lines
from trainer.engine.pauses import Pauses
from trainer.engine.supervised import Supervised, joined
from trainer.jobs.states import State
from trainer.jobs.steps import reach
from trainer.storage.checkpoint_sync import CheckpointSync, open_checkpoint_sync
from trainer.storage.scratch import remove_tree
from trainer.storage.training_cache import watched

_LAST_LINES = 10
# How long a job that was stopped waits for the rest of its checkpoints.
_SYNC_AFTER_STOP_S = 60.0


class Ended(NamedTuple):
    """How a job ended: the state it goes into, what is said of it, its commands' exit code where one is known."""

    state: State
    error: str
    code: int | None


def see_it_end(job: Supervised) -> Ended:
    """Wait for the job's last process, bring up its checkpoints, and return how it ended."""
    reach("running:seen")
    with ExitStack() as stack:
        sync = _open_sync(job, stack)
        for path in job.caches().values():
            # Over its cap, it is said. It is the user's to clear: nothing of theirs is deleted.
            stack.enter_context(watched(path, job.config.cache_bytes, job.log.say))
        ends, pauses = Ending(job.directory, job.config.stop_grace_s), Pauses()
        while is_held(job.directory.run_lock):
            if job.stopped():
                ends.press()
                pauses.news()
            pauses.pause()
        with job.if_there_is_room():
            job.store.release(job.id, "clearing" if sync is None else "syncing")
        reach("ending:exited")
        unsynced = "" if sync is None else _finish(job, sync)
        reach("ending:synced")
    with job.if_there_is_room():
        job.store.begin(job.id, "clearing")
    return _ended(job, unsynced)


def _open_sync(job: Supervised, stack: ExitStack) -> CheckpointSync | None:
    if not job.definition.project.job.runtime.checkpointing_config.enabled:
        return None
    job.store.note(job.id, sync="SYNCING")
    checkpointing.records(job.config).mkdir(parents=True, exist_ok=True, mode=0o700)
    return stack.enter_context(
        open_checkpoint_sync(
            job.directory.checkpoints,
            checkpointing.open_store(job.config),
            job.id,
            record=checkpointing.record(job.config, job.id),
            say=job.log.say,
        )
    )


def _finish(job: Supervised, sync: CheckpointSync) -> str:
    """Wait for the last checkpoints, for a job that is stopped not for ever; return what is said of those missing."""
    limit_s = time.monotonic() + _SYNC_AFTER_STOP_S
    report = sync.finish(
        job.config.checkpoint_wait_s,
        goes_on=lambda progress: time.monotonic() < limit_s or not job.stopped(),
    )
    job.log.say(report.said)
    with job.if_there_is_room():
        job.store.note(job.id, sync=report.state)
    if report.state != "COMPLETED":
        return checkpointing.said_of_missing(job.id, job.directory, report)
    remove_tree(job.directory.checkpoints)
    return ""


def _ended(job: Supervised, unsynced: str) -> Ended:
    """Return how it ended, by what the runner wrote down."""
    found = read_json(job.directory.exit)
    code = None if found is None else int(found["code"])
    if job.stopped():
        return Ended(State.STOPPED, unsynced, code)
    if code is None:
        _clear_mounts(job)
        said = "the process that ran the job was killed, or the machine restarted; its exit code is not known"
        return Ended(State.FAILED, joined(said, unsynced), None)
    if code == 0:
        return Ended(State.COMPLETED, unsynced, 0)
    lines = last_lines(job.directory.log, _LAST_LINES)
    said = f"the start commands ended with exit code {code}{_signal_named(code)}"
    if lines:
        said += "; the last lines: " + " | ".join(lines)
    return Ended(State.FAILED, joined(said, unsynced), code)


def _clear_mounts(job: Supervised) -> None:
    """Have bdnfs remove the directories that a killed `bdnfs run` left; any later call of it would, too."""
    with contextlib.suppress(DeliveryError, StopRequestedError):
        command = bdnfs_command("status", config=job.config.bdnfs_config)
        call(command, stopped=lambda: False, say=job.log.say)


def _signal_named(code: int) -> str:
    """Return what an exit code above 128 means, as shells have it."""
    if code == 128 + signal.SIGKILL:
        return " (killed by SIGKILL; for lack of memory? `dmesg` says)"
    try:
        return f" (ended by {signal.Signals(code - 128).name})" if code > 128 else ""
    except ValueError:
        return ""
