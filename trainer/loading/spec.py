"""The weights of a config.py, as a spec.yaml would hold them."""

from typing import Any

from trainer.definitions import TrainingProject, WeightsSource


def spec_of(project: TrainingProject) -> dict[str, Any]:
    """Return what project's job has delivered, as the content of a spec.yaml."""
    return {"weights": [_weights(each) for each in project.job.weights]}


def _weights(source: WeightsSource) -> dict[str, Any]:
    return source.model_dump(mode="json", exclude_none=True)
