"""From a config.py to the one project it holds."""

from trainer.loading.config import LOAD_TIMEOUT_S, LoadedConfig, load_config
from trainer.loading.spec import spec_of

__all__ = ["LOAD_TIMEOUT_S", "LoadedConfig", "load_config", "spec_of"]
