"""Training jobs: a config.py written for truss_train runs unchanged, its weights delivered first.

import trainer

job = trainer.push("config.py")
"""

from typing import Any

__all__ = ["push"]


def __getattr__(name: str) -> Any:
    """Import the API when it is first asked for: what only loads a config needs none of it."""
    import importlib

    if name in __all__:
        return getattr(importlib.import_module("trainer.api"), name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
