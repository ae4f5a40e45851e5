"""A value that stands in no config: its name does."""

from trainer.definitions.base import Exact


class SecretReference(Exact):
    """name: that of a file in the secrets directory, or of an environment variable."""

    name: str
