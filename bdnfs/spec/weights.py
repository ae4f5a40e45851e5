"""The spec: what a job declares it needs, and where it is to appear."""

import msgspec

from bdnfs.spec.auth import WeightsAuth, check_method
from bdnfs.spec.patterns import Patterns
from bdnfs.spec.source import Source


class Weights(msgspec.Struct, frozen=True):
    """One source and its mount_location: absolute, or relative to a MOUNTPOINT (`.` is MOUNTPOINT itself).

    Raises SpecError on construction if the source can't be read by that auth.
    """

    source: Source
    mount_location: str
    patterns: Patterns = Patterns()
    auth: WeightsAuth | None = None

    def __post_init__(self) -> None:
        if self.auth is not None:
            check_method(self.auth, self.source.scheme)

    @property
    def secret_name(self) -> str | None:
        """The secret that holds the credentials, if the source is read with one."""
        return self.auth.auth_secret_name if self.auth else None


class Spec(msgspec.Struct, frozen=True):
    """All that one job declares.

    path:     the file it was read from, None for a bare source
    warnings: what that file's author should look at
    """

    weights: tuple[Weights, ...]
    path: str | None = None
    warnings: tuple[str, ...] = ()
