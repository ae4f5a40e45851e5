"""What an ended job could not bring into object storage: brought there later, and kept until then."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainer.config import TrainerConfig
from trainer.engine import checkpointing
from trainer.engine.directory import JobDirectory
from trainer.engine.locks import wait_lock
from trainer.engine.log import Log
from trainer.errors import JobError
from trainer.jobs.record import Job
from trainer.jobs.store import Store
from trainer.storage.checkpoint_sync import SyncProgress, SyncReport, open_checkpoint_sync
from trainer.storage.checkpoints import take_over_record
from trainer.storage.scratch import remove_tree

# A supervisor has its lock for a moment longer than its job lives.
_LOCK_S = 5.0


def upload_checkpoints(
    config: TrainerConfig,
    store: Store,
    job: Job,
    *,
    watch: Callable[[SyncProgress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> SyncReport | None:
    """Bring up what a job that has ended left behind, then clear it away; None where nothing is left.

    Ends once all is up, or the store has refused what is left, or for checkpoint_wait nothing has gone up: what is
    missing then is in the report, and kept. watch: is told how far it is; say: gets lines for people, from a thread
    Raises JobError for a job that has not ended, one that is uploaded for already, and one whose files are gone;
    StoreError where the store can't be asked what it has.
    """
    if not job.state.final:
        raise JobError(
            f"job {job.id} is {job.state}: what it saves goes up while it runs and at its end; `trainer checkpoints "
            f"list {job.id}` says how far that is"
        )
    directory = JobDirectory(config.job_directory(job.id))
    if not directory.path.is_dir():
        if job.sync == "SYNCING":
            raise _gone(job, directory)
        return None
    with held(config, job.id):
        job = store.job(job.id)
        if job.sync != "SYNCING":
            if job.sync == "COMPLETED":
                remove_tree(directory.checkpoints)  # for whoever was killed before that
            return None
        if not directory.checkpoints.is_dir():
            raise _gone(job, directory)
        report = _upload(config, job, directory, watch, say)
        if report.state == "COMPLETED":
            store.note(job.id, "its checkpoints were uploaded later" if job.error else "", sync="COMPLETED")
            remove_tree(directory.checkpoints)
    return report


def _upload(
    config: TrainerConfig,
    job: Job,
    directory: JobDirectory,
    watch: Callable[[SyncProgress], None],
    say: Callable[[str], None],
) -> SyncReport:
    record, kept = checkpointing.record(config, job.id), checkpointing.open_store(config)
    # Who mends what kept them from going up may name another store: what that one has is what counts.
    take_over_record(kept, job.id, record)

    def goes_on(progress: SyncProgress) -> bool:
        watch(progress)
        return True

    with contextlib.closing(Log(directory.log)) as log:

        def tell(line: str) -> None:
            log.say(line)
            say(line)

        with open_checkpoint_sync(directory.checkpoints, kept, job.id, record=record, say=tell) as sync:
            report = sync.finish(config.checkpoint_wait_s, goes_on)
        log.say(report.said)
    return report


@contextmanager
def held(config: TrainerConfig, job_id: str) -> Iterator[None]:
    """Keep others from what an ended job left; raise JobError where somebody is at it."""
    lock = wait_lock(JobDirectory(config.job_directory(job_id)).supervisor_lock, _LOCK_S)
    if lock is None:
        raise JobError(
            f"job {job_id}: another command is uploading its checkpoints; wait until that has ended"
        )
    try:
        yield
    finally:
        os.close(lock)


def _gone(job: Job, directory: JobDirectory) -> JobError:
    return JobError(
        f"job {job.id}: {directory.checkpoints}, where the rest of its checkpoints was kept, is gone; "
        f"`trainer checkpoints list {job.id}` says what is in object storage"
    )
