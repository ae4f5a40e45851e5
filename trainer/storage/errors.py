"""What can go wrong with a job's storage, beside what the trainer has words for; exit codes as `bdnfs`'s."""

from trainer.errors import PlaceError, SpaceError, TrainerError

__all__ = ["DamagedError", "NoCheckpointError", "PlaceError", "SpaceError", "StoreAwayError", "StoreError"]


class StoreError(TrainerError):
    """Object storage gave no usable answer, or what it holds can't be used; the same again is of no use."""

    exit_code = 5


class StoreAwayError(StoreError):
    """Object storage failed in a way that may pass."""


class NoCheckpointError(StoreError):
    """There is no such checkpoint."""


class DamagedError(TrainerError):
    """What was written is not what is there now."""

    exit_code = 6
