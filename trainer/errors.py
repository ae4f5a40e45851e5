"""What can go wrong, beside what bdnfs raises: one class for each decision a caller makes."""


class TrainerError(Exception):
    """Anything the trainer says to its user: what was being done, to what, what was found, what next."""

    exit_code = 1


class ConfigError(TrainerError):
    """The config.py, the trainer's config or the command line is wrong; nothing was touched."""

    exit_code = 2


class JobSecretError(TrainerError):
    """A secret that the job names is nowhere."""

    exit_code = 3


class NoGpuError(TrainerError):
    """The machine does not have the GPUs that the job asks for."""

    exit_code = 2


class JobError(TrainerError):
    """There is no such job, or it is not in a state for what is asked of it."""

    exit_code = 2


class SpaceError(TrainerError):
    """It does not fit a cap, or the disk."""

    exit_code = 4


class PlaceError(TrainerError):
    """A directory, a mount or a disk image can't be made or used."""

    exit_code = 8


class HomeError(TrainerError):
    """The trainer's home can't be used: its database, its directories."""

    exit_code = 9


class JobFailedError(TrainerError):
    """The job that was followed ended otherwise than by completing."""

    exit_code = 10
