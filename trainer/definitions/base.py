"""The two ways a definition takes its fields: exactly, or as a config file's loose values."""

import difflib
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

_DEFINITIONS = os.path.dirname(os.path.abspath(__file__)) + "/"


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
                _warn(f"{cls.__name__} has no field {name!r}, it is left out; {hint(name, cls.model_fields)}")
        return data

    def replaced(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, checked anew."""
        return type(self).model_validate({**self.model_dump(), **changes})


def _warn(message: str) -> None:
    """Warn about the line that makes the definition, below all that is pydantic's or ours."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_code.co_filename):
        frame = frame.f_back
    warnings.warn_explicit(message, UserWarning, frame.f_code.co_filename, frame.f_lineno)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_DEFINITIONS) or "/pydantic/" in filename


def hint(name: object, known: Iterable[str]) -> str:
    """Return what an error about an unknown name adds: the nearest known one, or all of them."""
    known = list(known)
    word = str(name)[:64]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    near = near or [each for each in known if len(word) > 2 and each.startswith(word[:3])]
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
