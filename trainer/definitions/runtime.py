"""How a job runs: its commands, its variables, and what is kept of it."""

from typing import Any

from pydantic import Field, model_validator

from trainer.definitions.base import Exact
from trainer.definitions.checkpoints import CheckpointingConfig, LoadCheckpointConfig
from trainer.definitions.secrets import SecretReference

CACHE_BASE = "/root/.cache"


class CacheConfig(Exact):
    """The training cache: directories that a project's, and a team's, jobs share and keep."""

    enabled: bool = False
    enable_legacy_hf_mount: bool = False
    require_cache_affinity: bool = True
    mount_base_path: str = CACHE_BASE


class Runtime(Exact):
    """start_commands run one after another with bash; enable_cache is the old way to write cache_config."""

    start_commands: list[str] = Field(default_factory=list)
    environment_variables: dict[str, str | SecretReference] = Field(default_factory=dict)
    enable_cache: bool | None = None
    checkpointing_config: CheckpointingConfig = Field(default_factory=CheckpointingConfig)
    cache_config: CacheConfig | None = None
    load_checkpoint_config: LoadCheckpointConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_cache(cls, data: Any) -> Any:
        if (
            isinstance(data, dict)
            and data.get("enable_cache") is not None
            and data.get("cache_config") is not None
        ):
            raise ValueError("enable_cache is the old way to write cache_config; keep cache_config alone")
        return data

    @property
    def cache(self) -> CacheConfig:
        """The training cache as it is meant, whichever way it was written."""
        return self.cache_config or CacheConfig(enabled=bool(self.enable_cache))
