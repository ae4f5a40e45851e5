"""GPUs: which kind, and how many."""

from enum import StrEnum
from typing import Any

from pydantic import field_validator, model_validator

from trainer.definitions.base import Loose


class Accelerator(StrEnum):
    """The kinds of GPU a job can ask for."""

    T4 = "T4"
    L4 = "L4"
    A10G = "A10G"
    V100 = "V100"
    A100 = "A100"
    A100_40GB = "A100_40GB"
    H100 = "H100"
    H200 = "H200"
    H100_40GB = "H100_40GB"
    B200 = "B200"
    L40S = "L40S"
    RTX_PRO_6000 = "RTX_PRO_6000"
    B300 = "B300"
    GB300 = "GB300"
    B10 = "B10"


class AcceleratorSpec(Loose):
    """count GPUs of one kind; written `H200` or `H200:8` where a text is taken."""

    accelerator: Accelerator | None = None
    count: int = 1

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return parse_accelerator(data) if isinstance(data, str) else data

    @field_validator("count")
    @classmethod
    def _some(cls, count: int) -> int:
        if count < 0:
            raise ValueError(f"count is {count}; give 1 or more")
        return count

    def __str__(self) -> str:
        return "none" if self.accelerator is None else f"{self.accelerator.value}:{self.count}"


def parse_accelerator(text: str) -> dict[str, Any]:
    """Return the fields of an AcceleratorSpec written as text, such as `H200:8`; ValueError if it is none."""
    name, colon, count = text.strip().partition(":")
    known = Accelerator.__members__
    if name.upper() not in known:
        raise ValueError(f"accelerator {text!r} names no known GPU; known are {', '.join(known)}")
    if colon and not (count.isascii() and count.isdigit() and int(count[:6]) > 0):
        raise ValueError(f"accelerator {text!r}: after the ':' comes how many, such as {name}:8")
    return {"accelerator": known[name.upper()], "count": int(count) if colon else 1}
