"""What a config.py did wrong, in one line that begins with file and line. No traceback, no value."""

import os
import re
import traceback
from types import TracebackType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from trainer import definitions
from trainer.definitions.base import hint
from trainer.loading.shims import SHIMS, is_shimmed

_SHOWN_CHARS_MAX = 600
_CANNOT_IMPORT = re.compile(r"cannot import name '(\w+)' from '([\w.]+)'")
_NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")


def explain(error: BaseException, path: str) -> str:
    """Return what to tell about error, which came out of running the config at path."""
    if isinstance(error, SyntaxError) and not _reached(error.__traceback__, path):
        # Of this file, or of one that it has not got to.
        where = os.path.basename(path) if error.filename in (None, path) else str(error.filename)
        line = f":{error.lineno}" if error.lineno else ""
        return f"{where}{line}: is not Python: {error.msg}"
    return f"{_place(error, path)}: {_what(error)[:_SHOWN_CHARS_MAX]}"


def _reached(trace: TracebackType | None, path: str) -> bool:
    return any(frame.filename == path for frame in traceback.extract_tb(trace))


def _place(error: BaseException, path: str) -> str:
    """The line of the config that was running, and where below it the error was raised, if that is the user's."""
    frames = traceback.extract_tb(error.__traceback__)
    base = os.path.basename(path)
    own = [index for index, frame in enumerate(frames) if frame.filename == path]
    if not own:
        return base
    place = f"{base}:{frames[own[-1]].lineno}"
    directory = os.path.dirname(path) + "/"
    below = [each for each in frames[own[-1] + 1 :] if each.filename.startswith(directory)]
    if below and "/site-packages/" not in below[-1].filename:
        place += f" (at {below[-1].filename[len(directory) :]}:{below[-1].lineno})"
    return place


def _what(error: BaseException) -> str:
    match error:
        case ValidationError():
            return "; ".join(_fields(error))
        case ModuleNotFoundError():
            if error.name and is_shimmed(error.name):
                return str(error)
            return (
                f"imports {error.name!r}, which is not installed beside the trainer; install it there, or import it "
                "in the training script alone"
            )
        case ImportError() if found := _CANNOT_IMPORT.search(str(error)):
            return _unknown(found[2], found[1]) or str(error)
        case AttributeError() if found := _NO_ATTRIBUTE.search(str(error)):
            return _unknown(found[1], found[2]) or str(error)
        case SystemExit():
            return "ends the interpreter (sys.exit); a config only defines its TrainingProject"
        case SyntaxError():
            return f"imports {error.filename}, line {error.lineno}, which is not Python: {error.msg}"
    text = str(error)
    return f"raises {type(error).__name__}" + (f": {text}" if text else "")


def _unknown(module: str, name: str) -> str | None:
    if not is_shimmed(module):
        return None
    return f"{module} has no {name!r} here; {hint(name, SHIMS.get(module, {}))}"


def _fields(error: ValidationError) -> list[str]:
    """One text for each field that is wrong: where, what is expected, never the value, which may be a secret."""
    told: dict[str, str] = {}
    for each in error.errors(include_url=False, include_context=False):
        # A union complains once for each of its members, under their names: the first will do.
        depth = len(each["loc"]) if each["type"] == "extra_forbidden" else _depth(error.title, each["loc"])
        where = ".".join([error.title, *map(str, each["loc"][:depth])])
        told.setdefault(where, _field(error.title, each))
    return [f"{where}: {what}" for where, what in told.items()]


def _depth(title: str, steps: tuple[int | str, ...]) -> int:
    """Return how many of the steps to what is wrong are the user's: a field, and what in its list or dict."""
    model: Any = getattr(definitions, title, None)
    field = model.model_fields.get(steps[0]) if model is not None and steps else None
    return 2 if field is not None and get_origin(field.annotation) in (list, dict) else 1


def _field(title: str, found: Any) -> str:
    kind, given = found["type"], found["input"]
    if kind == "extra_forbidden":
        return f"unknown field; {hint(found['loc'][-1], _known(title, found['loc'][:-1]))}"
    if kind == "missing":
        return "is missing"
    message = str(found["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message
    return f"{message[:1].lower()}{message[1:]}, found {_kind(given)}"


def _kind(value: object) -> str:
    match value:
        case None:
            return "None"
        case bool() | int() | float():
            return f"the {type(value).__name__} {value!r}"[:60]
        case BaseModel():
            return f"a {type(value).__name__}"
    return f"a value of type {type(value).__name__}"


def _known(title: str, steps: tuple[int | str, ...]) -> list[str]:
    """The fields of the definition called title, or of what lies in it along steps."""
    model: Any = getattr(definitions, title, None)
    for step in steps:
        if isinstance(model, type) and issubclass(model, BaseModel) and step in model.model_fields:
            model = _model_in(model.model_fields[str(step)].annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)
