"""From a config.py to the one project it holds, and what can be known about it before anything is fetched."""

from trainer.loading.config import LOAD_TIMEOUT_S, LoadedConfig, load_config
from trainer.loading.overrides import Overrides, overridden
from trainer.loading.preflight import check_secrets, memory_bytes, preflight, secrets_of, variables_of
from trainer.loading.spec import spec_of

__all__ = [
    "LOAD_TIMEOUT_S",
    "LoadedConfig",
    "Overrides",
    "check_secrets",
    "load_config",
    "memory_bytes",
    "overridden",
    "preflight",
    "secrets_of",
    "spec_of",
    "variables_of",
]
