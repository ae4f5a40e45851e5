"""The trainer's own config: where its home is, what this machine gives to jobs. Read once, frozen, handed down.

`$TRAINER_CONFIG`, else `~/.config/bdnfs-trainer/config.yaml`; with none, everything has a default for one machine.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, ValidationError

from trainer.definitions.base import hint
from trainer.errors import ConfigError

SCRATCH_BYTES = 50 << 30
# The reference caps a workspace at 5 GB and a training cache at 1 TB.
WORKSPACE_BYTES, CACHE_BYTES = 5 * 10**9, 10**12


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{path} is relative; write it from '/' on")
    return path


_Directory = Annotated[Path, AfterValidator(_absolute)]


class CheckpointStore(BaseModel):
    """Where checkpoints are kept.

    url:              `s3://bucket/prefix` (gs, azure, r2, cw), or an absolute directory
    auth_secret_name: the secret it is written with; without one, the usual variables
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    auth_secret_name: str | None = None


class TrainerConfig(BaseModel):
    """What one machine gives to training jobs. Sizes are written `200GB`, `1.5TiB`; durations are seconds.

    home:              where jobs, caches and checkpoints are
    slots:             jobs that run at once
    gpus:              GPUs that jobs may have; None: those of the machine
    stop_grace_s:      between SIGTERM and SIGKILL of a job's processes
    scratch_bytes:     of a job's scratch, reserved on the disk while it runs; None: a quarter of what is free then,
                       50 GiB at most
    cache_bytes:       cap of a project's and of a team's training cache
    workspace_bytes:   cap of a workspace
    checkpoint_wait_s: how long the end of a job waits for an object store that fails; what is not up then is kept
                       and said
    bdnfs_config:      given to `bdnfs --config`; None: its usual places
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    home: _Directory
    slots: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus: Annotated[int, Field(ge=0, le=1024)] | None = None
    stop_grace_s: Annotated[float, Field(ge=0, le=3600, alias="stop_grace")] = 30.0
    checkpoints: CheckpointStore | None = None
    scratch_bytes: Annotated[ByteSize | None, Field(alias="scratch")] = None
    cache_bytes: Annotated[ByteSize, Field(alias="cache")] = ByteSize(CACHE_BYTES)
    workspace_bytes: Annotated[ByteSize, Field(alias="workspace")] = ByteSize(WORKSPACE_BYTES)
    checkpoint_wait_s: Annotated[float, Field(ge=0, le=30 * 86400, alias="checkpoint_wait")] = 3600.0
    bdnfs_config: _Directory | None = None

    @property
    def database(self) -> Path:
        return self.home / "trainer.sqlite"

    def scratch_cap_bytes(self) -> int:
        """Return how large a scratch that is made now may become."""
        if self.scratch_bytes is not None:
            return int(self.scratch_bytes)
        return min(SCRATCH_BYTES, shutil.disk_usage(self.home).free // 4)

    def job_directory(self, job_id: str) -> Path:
        """Where everything of one job lies."""
        return self.home / "jobs" / job_id


def load_config(environment: Mapping[str, str]) -> TrainerConfig:
    """Return the trainer's config; raise ConfigError naming the file, the key and what is wrong.

    `$TRAINER_HOME` goes before what the file says of home.
    """
    user = Path(environment.get("HOME") or os.path.expanduser("~"))
    named = environment.get("TRAINER_CONFIG")
    path = Path(named) if named else user / ".config/bdnfs-trainer/config.yaml"
    content: Any = {}
    if named or path.exists():
        content = _read(path)
    if environment.get("TRAINER_HOME"):
        content = {**content, "home": environment["TRAINER_HOME"]}
    content.setdefault("home", user / ".local/share/bdnfs-trainer")
    if isinstance(content.get("checkpoints"), str):
        content["checkpoints"] = {"url": content["checkpoints"]}
    try:
        return TrainerConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the trainer's config {path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys such as `slots: 2`, found a {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in TrainerConfig.model_fields.items()]
        return f"{where}: is no key of the trainer's config; {hint(first['loc'][-1], known)}"
    return f"{where}: {first['msg']}"
