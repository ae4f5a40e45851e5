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
