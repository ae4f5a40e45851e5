"""Deleting a project: everything of it first, what says that it is there last. Again after a crash, it goes on."""

from collections.abc import Sequence
from contextlib import ExitStack

from trainer.config import TrainerConfig
from trainer.engine import checkpointing
from trainer.engine.directory import JobDirectory
from trainer.engine.uploading import held
from trainer.errors import JobError
from trainer.jobs.record import Job, Project
from trainer.jobs.store import Store
from trainer.storage.checkpoints import delete_checkpoints
from trainer.storage.scratch import remove_tree
from trainer.storage.training_cache import delete_project_cache


def delete_project(config: TrainerConfig, store: Store, project: Project, *, checkpoints: bool) -> int:
    """Delete a project's jobs and training cache (checkpoints: these, too); return the bytes of cache freed.

    Raises JobError while one of its jobs has not ended, or while checkpoints that are to be kept are nowhere but here;
    what the object store raises.
    """
    jobs = store.jobs(project_id=project.id)
    active = [f"{job.id} ({job.state})" for job in jobs if not job.state.final]
    if active:
        raise JobError(
            f"the project has jobs that have not ended: {', '.join(active)}; `trainer stop` them first"
        )
    left = [each for each in jobs if each.sync == "SYNCING" and _directory(config, each).checkpoints.is_dir()]
    if left and not checkpoints:
        raise JobError(
            f"checkpoints of {', '.join(each.id for each in left)} are not in object storage yet: `trainer checkpoints "
            "upload` brings them there, --checkpoints deletes them"
        )
    with ExitStack() as stack:
        for each in left:
            stack.enter_context(held(config, each.id))
        return _delete(config, store, project, jobs, checkpoints=checkpoints)


def _delete(
    config: TrainerConfig, store: Store, project: Project, jobs: Sequence[Job], *, checkpoints: bool
) -> int:
    if checkpoints and jobs:
        kept = checkpointing.open_store(config)
        for job in jobs:
            delete_checkpoints(kept, job.id)
    freed_bytes = delete_project_cache(config.home, project.id)
    for job in jobs:
        remove_tree(_directory(config, job).path)
        checkpointing.record(config, job.id).unlink(missing_ok=True)
    store.delete_project(project.id)
    return freed_bytes


def _directory(config: TrainerConfig, job: Job) -> JobDirectory:
    return JobDirectory(config.job_directory(job.id))
