"""What the runner is to do: written once by the supervisor, read by the runner and by what runs inside."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from trainer.engine.directory import read_json, write_json
from trainer.errors import HomeError

# root: a mount namespace. user: a user and a mount namespace. none: neither is to be had.
Namespace = Literal["root", "user", "none"]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything a run needs but the values of its secrets.

    places:           (directory, location): what is bound where, besides weights
    scratch:          fields of a Scratch, and where it is mounted
    deliver:          the `bdnfs run` command up to its `--`; [] for a job without weights
    writable:         locations of weights that get an overlay
    secret_variables: by variable, the secret's name
    commands:         the start commands, in one shell, until the first that fails
    """

    job_id: str
    database: str
    namespace: Namespace
    places: list[tuple[str, str]]
    scratch: dict[str, Any]
    scratch_location: str
    deliver: list[str]
    writable: list[str]
    variables: dict[str, str]
    secret_variables: dict[str, str]
    bdnfs_config: str | None
    commands: list[str]
    working_directory: str
    grace_s: float

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the plan at path; raise HomeError where it can't be read."""
        found = read_json(path)
        if not isinstance(found, dict):
            raise HomeError(f"{path}: the plan of the job's run can't be read; recreate the job")
        places = [(place[0], place[1]) for place in found["places"]]
        return cls(**{**found, "places": places})
