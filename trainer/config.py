"""The trainer's own config: where its home is, what this machine gives to jobs. Read once, frozen, handed down.

`$TRAINER_CONFIG`, else `~/.config/bdnfs-trainer/config.yaml`; with none, everything has a default for one machine.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

# Every command reads this, so: the standard library only, and YAML where there is a file.

SCRATCH_BYTES = 50 << 30
# The reference caps a workspace at 5 GB and a training cache at 1 TB.
WORKSPACE_BYTES, CACHE_BYTES = 5 * 10**9, 10**12
_DAY_S = 86400.0
_SIZE = re.compile(r"(?P<number>[0-9]{1,18}(\.[0-9]{1,6})?) ?((?P<unit>[KMGTP])?(?P<binary>i)?B?)?", re.ASCII)
_POWERS = {letter: power for power, letter in enumerate("KMGTP", 1)}


@dataclass(frozen=True)
class CheckpointStoreConfig:
    """Where checkpoints are kept.

    url:              `s3://bucket/prefix` (gs, azure, r2, cw), or an absolute directory
    auth_secret_name: the secret it is written with; without one, the usual variables
    """

    url: str
    auth_secret_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """What one machine gives to training jobs.

    home:              where jobs, caches and checkpoints are
    slots:             jobs that run at once; None: one for each GPU, and one on a machine without
    gpus:              GPUs that jobs may have; None: those of the machine
    stop_grace_s:      between SIGTERM and SIGKILL of a job's processes
    checkpoints:       None: a directory of the home
    scratch_bytes:     of a job's scratch, reserved on the disk while it runs; None: a quarter of what is free then,
                       50 GiB at most
    cache_bytes:       cap of a project's and of a team's training cache
    workspace_bytes:   cap of a workspace
    checkpoint_wait_s: how long the end of a job waits for an object store that fails; what is not up then is kept
                       and said
    bdnfs_config:      given to `bdnfs --config`; None: its usual places
    """

    home: Path
    slots: int | None = None
    gpus: int | None = None
    stop_grace_s: float = 30.0
    checkpoints: CheckpointStoreConfig | None = None
    scratch_bytes: int | None = None
    cache_bytes: int = CACHE_BYTES
    workspace_bytes: int = WORKSPACE_BYTES
    checkpoint_wait_s: float = 3600.0
    bdnfs_config: Path | None = None

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
    content = _read(path) if named or path.exists() else {}
    if environment.get("TRAINER_HOME"):
        content["home"] = environment["TRAINER_HOME"]
    content.setdefault("home", str(user / ".local/share/bdnfs-trainer"))
    fields: dict[str, Any] = {}
    for key, value in content.items():
        if key not in _KEYS:
            from trainer.definitions.base import hint  # late: most commands have no use for the definitions

            raise ConfigError(f"{path}: {key}: is no key of the trainer's config; {hint(key, _KEYS)}")
        name, parse = _KEYS[key]
        try:
            fields[name] = parse(value)
        except ValueError as error:
            raise ConfigError(f"{path}: {key}: {error}") from None
    return TrainerConfig(**fields)


def _read(path: Path) -> dict[str, Any]:
    import yaml

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


def _directory(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError(f"expected a path from '/' on, found {value!r}")
    return Path(value)


def _count(at_least: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= 1024:
            raise ValueError(f"expected a number from {at_least} to 1024, found {value!r}")
        return value

    return parse


def _seconds(at_most: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= at_most:
            raise ValueError(f"expected seconds, from 0 to {at_most:g}, found {value!r}")
        return float(value)

    return parse


def _size(value: object) -> int:
    """Return a size such as 200GB or 1.5TiB in bytes."""
    found = _SIZE.fullmatch(str(value).strip()) if isinstance(value, int | float | str) else None
    if found is None or isinstance(value, bool) or (found["binary"] and not found["unit"]):
        raise ValueError(f"expected a size such as 200GB or 1.5TiB, found {value!r}")
    return int(float(found["number"]) * (1024 if found["binary"] else 1000) ** _POWERS.get(found["unit"], 0))


def _store(value: object) -> CheckpointStoreConfig:
    if isinstance(value, str):
        value = {"url": value}
    known = ("url", "auth_secret_name")
    if not isinstance(value, dict) or "url" not in value or not set(value) <= set(known):
        raise ValueError(f"expected a URL, a directory, or {{url, auth_secret_name}}, found {value!r}")
    if not all(isinstance(each, str) and each for each in value.values()):
        raise ValueError(f"expected texts, found {value!r}")
    if "://" not in value["url"] and not value["url"].startswith("/"):
        raise ValueError(f"{value['url']!r} is no URL such as s3://bucket/prefix, and no path from '/' on")
    return CheckpointStoreConfig(**value)


# By key: the field, and what makes its value.
_KEYS: dict[str, tuple[str, Callable[[object], Any]]] = {
    "home": ("home", _directory),
    "slots": ("slots", _count(1)),
    "gpus": ("gpus", _count(0)),
    "stop_grace": ("stop_grace_s", _seconds(3600)),
    "checkpoints": ("checkpoints", _store),
    "scratch": ("scratch_bytes", _size),
    "cache": ("cache_bytes", _size),
    "workspace": ("workspace_bytes", _size),
    "checkpoint_wait": ("checkpoint_wait_s", _seconds(30 * _DAY_S)),
    "bdnfs_config": ("bdnfs_config", _directory),
}
