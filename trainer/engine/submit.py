"""A push: everything that can be wrong is found first, then the job is packed, recorded, and left to a supervisor."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from trainer.config import TrainerConfig
from trainer.definitions import TrainingProject
from trainer.engine.definition import Definition
from trainer.engine.directory import JobDirectory, write_json
from trainer.engine.locks import locked
from trainer.engine.supervising import start_supervisor
from trainer.errors import ConfigError, HomeError
from trainer.jobs.record import Job, NewJob, new_id
from trainer.jobs.steps import reach
from trainer.jobs.store import Store
from trainer.loading import LoadedConfig, preflight
from trainer.scheduling import LocalMachine, machine_gpus
from trainer.storage.workspace import pack_workspace

_LOCK_S = 10.0


@dataclass(frozen=True)
class Pushed:
    """A job that was recorded, and what its user should know about how it runs here."""

    job: Job
    notes: tuple[str, ...]


def push(
    config: TrainerConfig,
    store: Store,
    loaded: LoadedConfig,
    *,
    writable: Sequence[str] = (),
    gpu_check: bool = True,
) -> Pushed:
    """Check, pack, record and start a job.

    Raises ConfigError, JobSecretError, NoGpuError or a bdnfs error, before anything is fetched or kept.
    """
    project = loaded.project
    bdnfs_config = None if config.bdnfs_config is None else str(config.bdnfs_config)
    notes = preflight(loaded, environment=os.environ, bdnfs_config=bdnfs_config)
    _check_writable(project, writable)
    gpus, kind = _gpus_wanted(project)
    if gpu_check:
        LocalMachine(store, config.slots, machine_gpus(config.gpus)).check(gpus, kind)
    elif gpus:
        notes = (*notes, f"--no-gpu-check: {gpus} × {kind or 'GPU'} are neither looked for nor reserved")
    job_id = new_id()
    with _new_directory(config, job_id) as directory:
        workspace = project.job.workspace
        packed = pack_workspace(
            loaded.path,
            directory.archive,
            workspace_root=workspace.workspace_root if workspace else None,
            external_dirs=workspace.external_dirs if workspace else (),
            exclude_dirs=workspace.exclude_dirs if workspace else (),
            bytes_max=config.workspace_bytes,
        )
        write_json(
            directory.packed,
            {"digest": packed.digest, "size_bytes": packed.size_bytes, "files": packed.files},
        )
        reach("push:packed")
        definition = Definition(
            project=project, config=str(loaded.path), writable=tuple(writable), gpu_check=gpu_check
        )
        job = store.add(
            NewJob(
                id=job_id,
                project=project.name,
                team=project.team_name or "",
                name=project.job.name or f"{project.name}-{job_id}",
                definition=definition.to_json(),
                gpus=gpus if gpu_check else 0,
                gpu_kind=kind if gpu_check else "",
                priority=project.job.priority or 0,
                availability=project.job.compute.availability_model.value,
                notes=(*notes, *packed.warnings),
            )
        )
        reach("push:recorded")
    start_supervisor(config, job_id)
    reach("push:started")
    return Pushed(job, job.notes)


@contextmanager
def _new_directory(config: TrainerConfig, job_id: str) -> Iterator[JobDirectory]:
    """Make a job's directory, held until the block has recorded the job; a block that fails leaves nothing."""
    directory = JobDirectory(config.job_directory(job_id))
    try:
        directory.make()
    except OSError as error:
        raise HomeError(f"making {directory.path} in the trainer's home: {error.strerror}") from None
    with locked(directory.supervisor_lock, _LOCK_S):
        try:
            yield directory
        except BaseException:
            shutil.rmtree(directory.path, ignore_errors=True)
            raise


def recreate(config: TrainerConfig, store: Store, job: Job) -> Pushed:
    """Push a job again, with the very workspace it had."""
    old, new = JobDirectory(config.job_directory(job.id)), new_id()
    if not old.archive.exists():
        raise ConfigError(f"job {job.id}: its workspace {old.archive} is gone; push its config again")
    with _new_directory(config, new) as directory:
        for source, target in ((old.archive, directory.archive), (old.packed, directory.packed)):
            os.link(source, target)
        again = store.add(
            NewJob(
                id=new,
                project=job.project,
                team=job.team,
                name=job.name,
                definition=job.definition,
                gpus=job.gpus,
                gpu_kind=job.gpu_kind,
                priority=job.priority,
                retry_count=job.retry_count + 1,
                availability=job.availability,
                notes=job.notes,
            )
        )
    start_supervisor(config, new)
    return Pushed(again, again.notes)


def _check_writable(project: TrainingProject, writable: Sequence[str]) -> None:
    known = [each.mount_location for each in project.job.weights]
    for location in writable:
        if location not in known:
            raise ConfigError(
                f"--writable {location}: no weights have this mount_location; they have {', '.join(known) or 'none'}"
            )


def _gpus_wanted(project: TrainingProject) -> tuple[int, str]:
    spec = project.job.compute.accelerator
    if spec is None or spec.accelerator is None:
        return 0, ""
    return spec.count, spec.accelerator.value
