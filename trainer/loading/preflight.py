"""What can be found out about a job before anything is fetched: its weights, its secrets, what it can't have here."""

import os
import posixpath
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import bdnfs
from trainer.definitions import (
    Compute,
    LoopsCheckpoint,
    Runtime,
    SecretReference,
    TrainingJob,
    TrainingProject,
)
from trainer.errors import ConfigError, JobSecretError
from trainer.loading.config import LoadedConfig
from trainer.loading.spec import spec_of

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_QUANTITY = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>[KMGTP]i?)?", re.ASCII)
_UNITS = {"": 1, **{letter: 1000**power for power, letter in enumerate("KMGTP", 1)}}
_UNITS |= {f"{letter}i": 1024**power for power, letter in enumerate("KMGTP", 1)}
_OWN_PREFIX = "BT_"
_PYTHON = re.compile(r"(?<![\w./-])python3?(?![\w./-])")
# Set by whoever has chosen a Python: venv, conda.
_ACTIVATED = ("VIRTUAL_ENV", "CONDA_PREFIX")


def preflight(
    loaded: LoadedConfig, *, environment: Mapping[str, str], bdnfs_config: str | None = None
) -> tuple[str, ...]:
    """Check all that needs no network and no GPU; return notes on what this machine does differently.

    Raises ConfigError for what can't run here, bdnfs.SpecError for weights that can't be delivered,
    JobSecretError naming every secret that is missing and what names it.
    """
    name, job = loaded.path.name, loaded.project.job
    if job.weights:
        bdnfs.declared(spec_of(loaded.project), where=name)
    _check_job(job, name)
    check_secrets(loaded.project, name, environment, bdnfs_config)
    return (*_notes(job), *_python_notes(job.runtime, environment))


def secrets_of(project: TrainingProject) -> dict[str, str]:
    """Return the secrets a job needs, by name, and for each the first place that names it."""
    found: dict[str, str] = {}
    for index, source in enumerate(project.job.weights):
        if source.secret_name:
            found.setdefault(source.secret_name, f"weights[{index}] ({source.source.partition('?')[0]})")
    for variable, value in project.job.runtime.environment_variables.items():
        if isinstance(value, SecretReference):
            found.setdefault(value.name, f"environment_variables[{variable!r}]")
    return found


def check_secrets(
    project: TrainingProject, where: str, environment: Mapping[str, str], bdnfs_config: str | None = None
) -> None:
    """Raise JobSecretError naming each secret that is missing, by what it is named and where it was looked for."""
    config = bdnfs.load_config(bdnfs_config, environment)
    problems = []
    for name, place in secrets_of(project).items():
        try:
            bdnfs.read_secret(name, config=config, environment=environment)
        except bdnfs.BdnfsError as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise JobSecretError(f"{where}: " + "; ".join(problems))


def variables_of(
    runtime: Runtime, environment: Mapping[str, str], bdnfs_config: str | None = None
) -> dict[str, str]:
    """Return a job's own variables with the secrets they name read; raises as bdnfs.read_secret does."""
    config = bdnfs.load_config(bdnfs_config, environment)
    return {
        variable: bdnfs.read_secret(value.name, config=config, environment=environment)
        if isinstance(value, SecretReference)
        else value
        for variable, value in runtime.environment_variables.items()
    }


def memory_bytes(text: str) -> int:
    """Return a quantity such as 16Gi in bytes; raise ValueError if it is none."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no amount of memory; write it like 16Gi")
    return int(float(found["number"]) * _UNITS[found["unit"] or ""])


def _check_job(job: TrainingJob, where: str) -> None:
    runtime = job.runtime
    if not any(command.strip() for command in runtime.start_commands):
        raise ConfigError(
            f"{where}: Runtime.start_commands is empty, so the job would do nothing; name what it runs, "
            'such as ["python train.py"]'
        )
    for variable in runtime.environment_variables:
        if not _VARIABLE.fullmatch(variable):
            raise ConfigError(
                f"{where}: environment_variables: {variable!r} can't name a variable; use letters, digits and '_'"
            )
        if variable.startswith(_OWN_PREFIX):
            raise ConfigError(
                f"{where}: environment_variables: {variable} is for the trainer to set; give yours another name"
            )
    if job.compute.node_count != 1:
        raise ConfigError(
            f"{where}: Compute.node_count is {job.compute.node_count}; this scheduler has one machine: give "
            "`--node-count 1`, and `torchrun --standalone` for several processes on it"
        )
    try:
        memory_bytes(job.compute.memory)
    except ValueError as error:
        raise ConfigError(f"{where}: Compute.memory: {error}") from None
    if job.compute.accelerator is not None and job.compute.accelerator.count < 1:
        raise ConfigError(
            f"{where}: Compute.accelerator: its count is 0; leave it out for a job without GPUs"
        )
    loading = runtime.load_checkpoint_config
    if (
        loading is not None
        and loading.enabled
        and any(isinstance(each, LoopsCheckpoint) for each in loading.checkpoints)
    ):
        raise ConfigError(
            f"{where}: load_checkpoint_config names a checkpoint of a Loops run; only those of training jobs are "
            "here (BasetenCheckpoint)"
        )
    for name, path in _paths(runtime):
        if not path.startswith("/") or ".." in path.split("/") or posixpath.normpath(path) == "/":
            raise ConfigError(f"{where}: {name} {path!r} can't be used; write a directory's path from '/' on")


def _paths(runtime: Runtime) -> list[tuple[str, str]]:
    found = [("CacheConfig.mount_base_path", runtime.cache.mount_base_path)]
    if runtime.checkpointing_config.checkpoint_path is not None:
        found.append(("CheckpointingConfig.checkpoint_path", runtime.checkpointing_config.checkpoint_path))
    if runtime.load_checkpoint_config is not None:
        found.append(("LoadCheckpointConfig.download_folder", runtime.load_checkpoint_config.download_folder))
    return found


def _notes(job: TrainingJob) -> list[str]:
    notes = [f"runs on this host: the image {job.image.base_image} is not used"]
    if job.image.docker_auth is not None:
        notes.append(f"no image is pulled, so nobody asks {job.image.docker_auth.registry} (docker_auth)")
    if job.interactive_session is not None:
        notes.append("interactive_session: no session is opened; you are on the machine already")
    if not job.runtime.checkpointing_config.enabled:
        notes.append(
            "checkpointing is off: what the job writes is gone with it (CheckpointingConfig(enabled=True))"
        )
    if job.runtime.enable_cache is not None:
        notes.append("enable_cache is the old way to write cache_config=CacheConfig(enabled=…)")
    return [*notes, *_machine_notes(job.compute)]


def _python_notes(runtime: Runtime, environment: Mapping[str, str]) -> list[str]:
    """Say so where a start command's `python` is another one than the trainer's, and nobody seems to have chosen it."""
    if any(environment.get(variable) for variable in _ACTIVATED) or "PATH" in runtime.environment_variables:
        return []
    own = os.path.dirname(sys.executable)
    for name in dict.fromkeys(_PYTHON.findall("\n".join(runtime.start_commands))):
        found = shutil.which(name, path=environment.get("PATH"))
        if found is not None and not _is_same_python(found, own):
            return [
                f"`{name}` in the start commands is {found}, your PATH's; this trainer runs with {own}/python. If that "
                "one has what the job needs, activate its environment, or write its path"
            ]
    return []


def _is_same_python(found: str, own: str) -> bool:
    try:
        if os.path.samefile(os.path.dirname(found), own):
            return True
        # A virtual environment's is a link to one that has other modules.
        return sys.prefix == sys.base_prefix and os.path.samefile(found, sys.executable)
    except OSError:
        return False


def _machine_notes(compute: Compute) -> list[str]:
    notes = []
    cores = len(os.sched_getaffinity(0))
    if compute.cpu_count > cores:
        notes.append(f"asks for {compute.cpu_count} CPUs; this machine gives {cores}")
    here = _machine_memory_bytes()
    if here is not None and memory_bytes(compute.memory) > here:
        notes.append(f"asks for {compute.memory} of memory; this machine has {here / 2**30:.0f}Gi")
    return notes


def _machine_memory_bytes() -> int | None:
    try:
        line = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()[0]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
