"""Checkpoints as the engine sees them: the store of this home, which to load, and the sync of one job."""

import os
from collections.abc import Sequence
from pathlib import Path

import bdnfs
from trainer.config import TrainerConfig
from trainer.definitions import BasetenLatestCheckpoint, BasetenNamedCheckpoint, LoadCheckpointConfig
from trainer.engine.directory import JobDirectory
from trainer.errors import ConfigError, JobError
from trainer.jobs.record import Job
from trainer.jobs.store import Store
from trainer.storage.checkpoint_store import CheckpointStore, StoreConfig, open_checkpoint_store
from trainer.storage.checkpoint_sync import SyncReport
from trainer.storage.checkpoints import LoadSource, Wanted, load_sources


def records(config: TrainerConfig) -> Path:
    """Return the directory of what is known here of each job's checkpoints."""
    return config.home / "checkpoints"


def record(config: TrainerConfig, job_id: str) -> Path:
    return records(config) / f"{job_id}.json"


def store_config(config: TrainerConfig) -> StoreConfig:
    """Return where checkpoints are kept: the configured store, or a directory of the home.

    Raises bdnfs.CredentialsError where its secret is missing.
    """
    named = config.checkpoints
    if named is None:
        directory = config.home / "checkpoints" / "store"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return StoreConfig(url=f"file://{directory}", environment=dict(os.environ))
    url = named.url if "://" in named.url else f"file://{named.url}"
    if named.auth_secret_name is None:
        return StoreConfig(url=url, environment=dict(os.environ))
    found = bdnfs.load_config(str(config.bdnfs_config) if config.bdnfs_config else None, os.environ)
    secret = bdnfs.read_secret(named.auth_secret_name, config=found, environment=os.environ)
    return StoreConfig(
        url=url, secret=secret, secret_name=named.auth_secret_name, environment=dict(os.environ)
    )


def open_store(config: TrainerConfig) -> CheckpointStore:
    return open_checkpoint_store(store_config(config))


def said_of_missing(job_id: str, directory: JobDirectory, report: SyncReport) -> str:
    """Return what is said of a job some of whose checkpoints could not be brought up."""
    path, why = report.missing[0]
    return (
        f"{len(report.missing)} files of its checkpoints are not in object storage, the first {path} ({why}); they are "
        f"kept in {directory.checkpoints}, and `trainer checkpoints upload {job_id}` brings them up once that is mended"
    )


def sources_to_load(
    config: TrainerConfig, store: Store, job: Job, loading: LoadCheckpointConfig
) -> Sequence[LoadSource]:
    """Return what bdnfs is to mount so that the checkpoints a job asks for stand where it looks for them.

    Raises JobError or ConfigError for one that is not to be had; what the object store raises.
    """
    wanted: list[Wanted] = []
    for each in loading.checkpoints:
        match each:
            case BasetenNamedCheckpoint():
                wanted.append(Wanted([each.job_id], each.checkpoint_name))
            case BasetenLatestCheckpoint():
                wanted.append(Wanted(_jobs(store, job, each)))
            case _:
                raise ConfigError(
                    "load_checkpoint_config names a checkpoint of a Loops run; there is no Loops here"
                )
    of_store = store_config(config)
    return load_sources(
        open_checkpoint_store(of_store), of_store, wanted, loading.download_folder, records(config)
    )


def _jobs(store: Store, job: Job, wanted: BasetenLatestCheckpoint) -> list[str]:
    if wanted.job_id is not None:
        return [wanted.job_id]
    project_id = job.project_id if wanted.project_name is None else store.project(wanted.project_name).id
    found = [each.id for each in reversed(store.jobs(project_id=project_id)) if each.id != job.id]
    if not found:
        raise JobError(
            f"project {wanted.project_name or job.project!r} has no earlier job whose checkpoint could be loaded; "
            "leave load_checkpoint_config out for its first"
        )
    return found
