"""Checkpoints: writing them while the job runs, and beginning from an earlier job's."""

from typing import Literal

from pydantic import Field

from trainer.definitions.base import Exact

LOADED_CHECKPOINTS = "/tmp/loaded_checkpoints"


class CheckpointingConfig(Exact):
    """What the job writes below checkpoint_path (BT_CHECKPOINT_DIR) goes to object storage while it runs."""

    enabled: bool = False
    checkpoint_path: str | None = None
    volume_size_gib: int | None = None


class BasetenLatestCheckpoint(Exact):
    """The newest checkpoint of a job, or of a project's newest job that has one; neither: of this project.

    With both it is the job's: a job belongs to one project.
    """

    typ: Literal["baseten_latest_checkpoint"] = "baseten_latest_checkpoint"
    job_id: str | None = None
    project_name: str | None = None


class BasetenNamedCheckpoint(Exact):
    """One checkpoint of one job, by its directory's name."""

    typ: Literal["baseten_named_checkpoint"] = "baseten_named_checkpoint"
    checkpoint_name: str
    job_id: str


class BasetenCheckpoint:
    """The two ways to name a checkpoint of a training job."""

    @staticmethod
    def from_latest_checkpoint(
        project_name: str | None = None, job_id: str | None = None
    ) -> BasetenLatestCheckpoint:
        """Return the newest of a project's or a job's; raise ValueError where neither is named."""
        if project_name is None and job_id is None:
            raise ValueError(
                "from_latest_checkpoint needs project_name or job_id: whose newest checkpoint is it?"
            )
        return BasetenLatestCheckpoint(project_name=project_name, job_id=job_id)

    @staticmethod
    def from_named_checkpoint(checkpoint_name: str, job_id: str) -> BasetenNamedCheckpoint:
        return BasetenNamedCheckpoint(checkpoint_name=checkpoint_name, job_id=job_id)


LoopsTarget = Literal["trainer", "sampler"]


class LoopsCheckpoint(Exact):
    """A checkpoint of a Loops run. There is no Loops here: a job that names one is refused at `check`."""

    typ: Literal["loops_checkpoint"] = "loops_checkpoint"
    run_id: str
    checkpoint_name: str
    target: LoopsTarget = "trainer"

    @classmethod
    def from_checkpoint(
        cls, run_id: str, checkpoint_name: str, target: LoopsTarget = "trainer"
    ) -> "LoopsCheckpoint":
        return cls(run_id=run_id, checkpoint_name=checkpoint_name, target=target)


Checkpoint = BasetenLatestCheckpoint | BasetenNamedCheckpoint | LoopsCheckpoint


def _latest() -> list[Checkpoint]:
    return [BasetenLatestCheckpoint()]


class LoadCheckpointConfig(Exact):
    """What stands below download_folder (BT_LOAD_CHECKPOINT_DIR) when the job starts."""

    enabled: bool = False
    checkpoints: list[Checkpoint] = Field(default_factory=_latest)
    download_folder: str = LOADED_CHECKPOINTS
