"""Specs in other programs' files: a config.py written for truss_train, a truss config.yaml.

A config.py is a program. The trainer runs it, in a process of its own: bdnfs imports nothing of the
trainer, and asks it as any other program would.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping

from bdnfs.core.errors import SpecError

# The trainer gives a config 60 s; an interpreter or two on a busy machine come on top.
_TIMEOUT_S = 240.0
# What a truss config.yaml may hold beside weights. https://docs.baseten.co/development/model/configuration
_TRUSS_KEYS = {
    *("model_name", "model_class_name", "model_class_filename", "model_module_dir", "model_framework"),
    *("model_type", "model_metadata", "model_cache", "description", "python_version", "requirements"),
    *("requirements_file", "system_packages", "environment_variables", "resources", "runtime", "secrets"),
    *("base_image", "docker_server", "build", "build_commands", "external_package_dirs", "external_data"),
    *("data_dir", "bundled_packages_dir", "input_type", "examples_filename", "trt_llm", "live_reload"),
    *("training_checkpoints", "apply_library_patches", "spec_version"),
}


def truss_weights(data: Mapping[object, object]) -> Mapping[object, object]:
    """Return a truss config's weights as a spec's content; anything else as it is."""
    return data if _TRUSS_KEYS.isdisjoint(data) else {"weights": data.get("weights")}


def python_weights(path: str) -> tuple[object, tuple[str, ...]]:
    """Return the weights of the config.py at path as a spec's content, and what its author should look at.

    Raises SpecError, with the trainer's own words, where it can't be loaded, or without the trainer.
    """
    missing = next((name for name in ("trainer", "pydantic") if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        raise SpecError(
            f"{path}: a config.py is run by the trainer, which is not installed ({missing} is missing): "
            "pip install 'bdnfs[trainer]', or write its weights into a spec.yaml"
        )
    command = [sys.executable, "-P", "-m", "trainer.loading", path]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise SpecError(
            f"{path}: was not loaded within {_TIMEOUT_S:g} s; is the machine overloaded?"
        ) from None
    said = done.stderr.decode(errors="replace").splitlines()
    if done.returncode != 0:
        raise SpecError(said[-1] if said else f"{path}: loading it ended with exit code {done.returncode}")
    found = json.loads(done.stdout)
    if not found["weights"]:
        raise SpecError(f"{path}: its job declares no weights, so there is nothing to deliver")
    return {"weights": found["weights"]}, tuple(found["warnings"])
