"""The two ways a definition takes its fields: exactly, or as a config file's loose values."""

import difflib
import warnings
from collections.abc import Iterable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator


class Exact(BaseModel):
    """Refuses unknown fields, and values of another type than the declared one."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True)


class Loose(BaseModel):
    """Converts what can be converted; an unknown field is left out, with a warning that names it."""

    model_config = ConfigDict(extra="ignore", validate_assignment=True)

    @model_validator(mode="before")
    @classmethod
    def _say_what_is_left_out(cls, data: Any) -> Any:
        for name in data if isinstance(data, dict) else ():
            if name not in cls.model_fields:
                warnings.warn(
                    f"{cls.__name__} has no field {name!r}; {hint(name, cls.model_fields)}", stacklevel=4
                )
        return data

    def replaced(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked anew."""
        return type(self).model_validate({**self.model_dump(), **changes})


def hint(name: object, known: Iterable[str]) -> str:
    """Return what an error about an unknown name adds: the nearest known one, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(str(name)[:64], known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
