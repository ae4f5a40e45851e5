"""What a job runs on."""

from enum import StrEnum
from typing import Any

from pydantic import field_validator

from trainer.definitions.accelerator import AcceleratorSpec
from trainer.definitions.base import Exact


class AvailabilityModel(StrEnum):
    """SPOT machines may be taken away; on one's own machine it makes no difference."""

    DEDICATED = "dedicated"
    SPOT = "spot"


class Compute(Exact):
    """memory is a Kubernetes quantity such as 16Gi; accelerator also takes a text such as `H200:8`."""

    node_count: int = 1
    cpu_count: int = 1
    memory: str = "2Gi"
    accelerator: AcceleratorSpec | None = None
    availability_model: AvailabilityModel = AvailabilityModel.DEDICATED

    @field_validator("accelerator", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return AcceleratorSpec.model_validate(value) if isinstance(value, str | dict) else value
