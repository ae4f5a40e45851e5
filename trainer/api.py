"""The Python API: push a job, follow it, end it."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.config import TrainerConfig, load_config
from trainer.definitions import TrainingProject
from trainer.engine import following, submit
from trainer.engine.directory import JobDirectory
from trainer.engine.log import read_log
from trainer.engine.supervising import sweep
from trainer.errors import ConfigError
from trainer.jobs.record import Job, Phase
from trainer.jobs.states import State
from trainer.jobs.store import Store
from trainer.loading import LoadedConfig
from trainer.loading import load_config as load_job

__all__ = ["PushedJob", "push"]


class PushedJob:
    """A job that was pushed. It goes on whatever becomes of this object."""

    def __init__(self, job_id: str, config: TrainerConfig, notes: Sequence[str] = ()) -> None:
        self.id = job_id
        self.notes = tuple(notes)
        self._config = config

    def __repr__(self) -> str:
        return f"PushedJob({self.id!r})"

    @property
    def record(self) -> Job:
        """The job as it is recorded now: its state, its error, its exit code."""
        with Store(self._config.database) as store:
            return store.job(self.id)

    @property
    def state(self) -> State:
        return self.record.state

    @property
    def phases(self) -> list[Phase]:
        """What each phase so far took (Unix seconds), moved (bytes by tier), and whether it held compute."""
        with Store(self._config.database) as store:
            return store.phases(self.id)

    def logs(self) -> Iterator[str]:
        """Yield the log's lines so far, each beginning with its time (UTC)."""
        return read_log(JobDirectory(self._config.job_directory(self.id)).log)

    def wait(self, timeout_s: float | None = None) -> Job:
        """Wait until it has ended, well or not; raise JobError where it has not after timeout_s."""
        with Store(self._config.database) as store:
            sweep(self._config, store)
            return following.wait(self._config, store, self.id, timeout_s)

    def stop(self) -> Job:
        """End it, and wait for that; raise JobError where it has ended already."""
        with Store(self._config.database) as store:
            return following.stop(self._config, store, self.id)


def push(
    path_or_project: str | os.PathLike[str] | TrainingProject,
    *,
    directory: str | os.PathLike[str] | None = None,
    writable: Sequence[str] = (),
    gpu_check: bool = True,
) -> PushedJob:
    """Run the job that a config.py, or a TrainingProject made here, defines; as `trainer push` does.

    directory: with a project, what its workspace is relative to; the current directory if not given
    writable:  mount_locations of weights that the job may write to
    Raises the classes of trainer.errors, and bdnfs's; warnings come as `warnings.warn`.
    """
    config = load_config(os.environ)
    if isinstance(path_or_project, TrainingProject):
        loaded = LoadedConfig(Path(directory or ".").absolute() / "config.py", path_or_project)
    else:
        if directory is not None:
            raise ConfigError("directory goes with a TrainingProject; a config.py lies in its own")
        loaded = load_job(path_or_project)
    for line in loaded.warnings:
        warnings.warn(line, stacklevel=2)
    with Store(config.database) as store:
        sweep(config, store)
        pushed = submit.push(config, store, loaded, writable=writable, gpu_check=gpu_check)
    return PushedJob(pushed.job.id, config, pushed.notes)
