"""Running a config.py in this process and finding the one project that it makes."""

import ast
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from trainer.definitions import TrainingProject
from trainer.errors import ConfigError
from trainer.loading.explain import explain
from trainer.loading.shims import shimmed


def execute(path: str, content: bytes) -> tuple[TrainingProject, list[str]]:
    """Run the config at path (absolute), whose bytes are content; return its project, and what it was warned of.

    Raises ConfigError, beginning with file and line, for whatever is wrong with it.
    """
    name = os.path.basename(path)
    try:
        tree = ast.parse(content, path)
        code = compile(tree, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        if isinstance(error, SyntaxError):
            raise ConfigError(explain(error, path)) from None
        raise ConfigError(f"{name}: is not Python: {error or 'nested too deeply'}") from None
    module = ModuleType(os.path.splitext(name)[0])
    module.__file__ = path
    with (
        warnings.catch_warnings(record=True) as caught,
        shimmed(),
        _importable(module, os.path.dirname(path)),
    ):
        warnings.simplefilter("always", UserWarning)
        try:
            exec(code, module.__dict__)
        except BaseException as error:
            raise ConfigError(explain(error, path)) from None
    said = [f"{os.path.basename(each.filename)}:{each.lineno}: {each.message}" for each in caught]
    return _the_one(module, tree, name), said


@contextmanager
def _importable(module: ModuleType, directory: str) -> Iterator[None]:
    """Have the config's directory on the path, and the config among the modules, as if it were imported."""
    free = module.__name__ not in sys.modules  # a config called json.py must not replace the library's
    sys.path.insert(0, directory)
    if free:
        sys.modules[module.__name__] = module
    try:
        yield
    finally:
        if directory in sys.path:
            sys.path.remove(directory)
        if free:
            sys.modules.pop(module.__name__, None)


def _the_one(module: ModuleType, tree: ast.Module, where: str) -> TrainingProject:
    found = {name: value for name, value in vars(module).items() if isinstance(value, TrainingProject)}
    if not found:
        raise ConfigError(
            f"{where}: holds no TrainingProject; give it one at the top level: "
            "project = TrainingProject(name=…, job=…)"
        )
    if len(found) > 1:
        lines = _lines(tree)
        names = ", ".join(f"{name} (line {lines[name]})" if name in lines else name for name in found)
        same = len({id(value) for value in found.values()}) == 1
        next_step = "they are the same project; keep one name for it" if same else "keep one in each config"
        raise ConfigError(f"{where}: holds {len(found)} TrainingProjects, {names}; {next_step}")
    return next(iter(found.values()))


def _lines(tree: ast.Module) -> dict[str, int]:
    return {
        node.id: node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
