"""The examples there are, and how one is written where its user wants it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.definitions.base import hint
from trainer.errors import ConfigError

_HERE = Path(__file__).parent
# What several examples are made of; which of it one has, its own files and imports say.
_SHARED = _HERE / "shared"


@dataclass(frozen=True)
class Example:
    """name: as users write it, and the directory it lies in; about: one line, from its config's docstring."""

    name: str
    about: str

    @property
    def files(self) -> list[Path]:
        """The example's own files, and the shared ones: train.py for all, others for those that need them."""
        own = [path for path in (_HERE / self.name).iterdir() if path.is_file()]
        loads_itself = any(path.name == "load_data.py" for path in own)
        shared = [_SHARED / "train.py", _SHARED / ("training_cache.py" if loads_itself else "sample.jsonl")]
        return sorted([*own, *shared], key=lambda path: path.name)


def catalog() -> list[Example]:
    """Return the examples, by name."""
    names = sorted(path.parent.name for path in _HERE.glob("*/config.py"))
    return [Example(name, _about(_HERE / name / "config.py")) for name in names]


def write_example(name: str, target: str | None, *, several: bool = False) -> Path:
    """Copy an example into target (several: into a directory of its name in it), or into ./<name>; return where.

    Raises ConfigError where there is no such example, or where a file of it is there already: nothing
    is overwritten, and nothing is written then.
    """
    known = {each.name: each for each in catalog()}
    if name not in known:
        raise ConfigError(f"there is no example {name!r}; {hint(name, known)}")
    place = Path(name) if target is None else Path(target) / name if several else Path(target)
    files = known[name].files
    there = [file.name for file in files if os.path.lexists(place / file.name)]
    if there:
        raise ConfigError(
            f"{place} holds {', '.join(there)} already, and nothing is overwritten; name another --target-directory"
        )
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, place / file.name)
    except OSError as error:
        raise ConfigError(f"writing the example {name} into {place}: {error.strerror}") from None
    return place


def _about(config: Path) -> str:
    import ast

    text = ast.get_docstring(ast.parse(config.read_bytes())) or ""
    return text.partition("\n")[0].rstrip(".")
