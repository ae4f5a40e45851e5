"""What was pushed, as it is recorded with the job: the project, and what the command line added to it."""

import json
from dataclasses import dataclass, field
from typing import Self

from trainer.definitions import TrainingProject
from trainer.jobs.record import Job


@dataclass(frozen=True, kw_only=True)
class Definition:
    """config: the config.py's path when it was pushed. writable: locations of weights that get an overlay."""

    project: TrainingProject
    config: str
    writable: tuple[str, ...] = field(default=())
    gpu_check: bool = True

    def to_json(self) -> str:
        return json.dumps(
            {
                "project": self.project.model_dump(mode="json"),
                "config": self.config,
                "writable": list(self.writable),
                "gpu_check": self.gpu_check,
            }
        )

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return what was pushed as this job."""
        found = json.loads(job.definition)
        return cls(
            project=TrainingProject.model_validate_json(json.dumps(found["project"])),
            config=found["config"],
            writable=tuple(found["writable"]),
            gpu_check=found["gpu_check"],
        )
