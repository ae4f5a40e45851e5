"""What is recorded of a project, a job, and each phase of its life. Standard library only: the runner reads it too."""

import secrets
import string
from dataclasses import dataclass, field

from trainer.jobs.states import State

_LETTERS = string.ascii_lowercase + string.digits
_ID_LENGTH = 8  # 36^8: a million jobs collide with a chance of one in five, and the primary key says so


def new_id() -> str:
    """Return an id such as `q04mj2xk`: it begins with a letter, so that no shell takes it for a number."""
    first = secrets.choice(string.ascii_lowercase)
    return first + "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH - 1))


@dataclass(frozen=True)
class Project:
    """What jobs are gathered in; they share its training cache. team: "" without one."""

    id: str
    name: str
    team: str
    created_s: float


@dataclass(frozen=True)
class NewJob:
    """What a push hands to the store.

    definition: the TrainingProject as JSON; secrets are named in it, never held
    gpus:       how many it needs; gpu_kind: of which kind, "" for any
    priority:   higher goes first
    retry_count: how often it was recreated
    """

    id: str
    project: str
    team: str
    name: str
    definition: str
    gpus: int = 0
    gpu_kind: str = ""
    priority: int = 0
    retry_count: int = 0
    availability: str = "dedicated"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A job as it is recorded.

    gpu_indices:      the GPUs it was given, as nvidia-smi numbers them
    ready_s:          since when it waits for a slot, None before that
    stop_requested_s: when a user asked for its end, None if nobody has
    error:            why it ended as it did, for people; "" while all is well
    exit_code:        of its start commands, 128 + n for signal n; None where they never ended
    released_s:       since when its slot and GPUs are others', because its commands have ended; None before that
    sync:             of its checkpoints: "", SYNCING, COMPLETED or FAILED
    """

    id: str
    project_id: str
    project: str
    team: str
    name: str
    state: State
    definition: str
    gpus: int
    gpu_kind: str
    gpu_indices: tuple[int, ...]
    priority: int
    retry_count: int
    availability: str
    notes: tuple[str, ...]
    created_s: float
    updated_s: float
    ready_s: float | None
    stop_requested_s: float | None
    error: str
    exit_code: int | None
    sync: str
    released_s: float | None = None


# In the order of a job's life; whether compute (a slot, GPUs) is held in it.
PHASES = {
    "pending": False,
    "resolving": False,
    "mirroring": False,
    "filling": False,
    "queued": False,
    "fetching": True,
    "preparing": True,
    "running": True,
    "syncing": False,
    "clearing": False,
}


@dataclass(frozen=True)
class Phase:
    """One stretch of a job's life: when it began and ended (Unix seconds; None: it goes on), what it moved.

    tier_bytes: bytes that came, by where they came from; total_bytes: what was needed in all
    """

    name: str
    began_s: float
    ended_s: float | None = None
    total_bytes: int = 0
    tier_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def holds_compute(self) -> bool:
        return PHASES[self.name]


@dataclass(frozen=True)
class Transition:
    """A step of a job's life: into state, at at_s (Unix seconds)."""

    state: State
    at_s: float
