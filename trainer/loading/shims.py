"""The modules a config.py imports, standing in for truss and truss_train while it is loaded.

They hold the trainer's own definitions. What was imported under these names before comes back
afterwards, so that an installed truss is neither used nor disturbed.
"""

import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType

from trainer import definitions
from trainer.definitions import accelerator, base, image, weights

_TRUSS_CONFIG = {
    name: getattr(module, name)
    for module, names in (
        (accelerator, ("Accelerator", "AcceleratorSpec")),
        (weights, ("WeightsAuth", "WeightsAuthMethod", "WeightsSource")),
        (image, ("DockerAuthType",)),
    )
    for name in names
}
_DEFINITIONS = {name: getattr(definitions, name) for name in definitions.__all__}

# What each module holds; those that hold nothing are there to hold the next.
SHIMS: dict[str, dict[str, object]] = {
    "truss": {},
    "truss.base": {},
    "truss.base.truss_config": _TRUSS_CONFIG,
    "truss_train": _DEFINITIONS,
    "truss_train.definitions": _DEFINITIONS,
}


def is_shimmed(name: str) -> bool:
    """Return whether the module called name belongs to truss or truss_train."""
    return name.partition(".")[0] in ("truss", "truss_train")


@contextmanager
def shimmed() -> Iterator[None]:
    """Have `truss` and `truss_train` be ours inside, and whatever they were before afterwards."""
    finder = _Finder()
    before = _take_out()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _take_out()
        sys.modules.update(before)


def _take_out() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if is_shimmed(name)}


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not is_shimmed(fullname):
            return None
        if fullname not in SHIMS:  # not from an installed truss either: half of each would fit nothing
            raise ModuleNotFoundError(
                f"there is no module {fullname!r} here; {base.hint(fullname, SHIMS)}", name=fullname
            )
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        held = SHIMS[module.__name__]
        module.__dict__.update(held)
        module.__dict__["__all__"] = list(held)
