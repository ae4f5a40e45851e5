"""The states of a job, and from which to which it may go: this table, and nothing else, says so."""

from enum import StrEnum


class State(StrEnum):
    """Where a job is in its life.

    PENDING:       recorded, nothing done yet
    CREATED:       its weights are resolved and mirrored (or brought to the node); it holds no slot and no GPU
    DEPLOYING:     it has its slot; what is still missing on the node comes, its places are made
    RUNNING:       everything is whole and mounted; its start commands run, and then its last checkpoints go up
    COMPLETED:     they ended well, and its checkpoints are where they belong
    FAILED:        they did not, or it was lost while it ran
    DEPLOY_FAILED: it ended before its start commands began
    STOPPED:       a user ended it
    PREEMPTED:     its machine was taken away; no scheduler here does that yet
    """

    PENDING = "PENDING"
    CREATED = "CREATED"
    DEPLOYING = "DEPLOYING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    STOPPED = "STOPPED"
    PREEMPTED = "PREEMPTED"

    @property
    def final(self) -> bool:
        return not TRANSITIONS[self]

    @property
    def holds_compute(self) -> bool:
        """Whether a job in this state has a slot, and its GPUs, as long as its commands have not ended."""
        return self in (State.DEPLOYING, State.RUNNING)


TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.CREATED, State.DEPLOY_FAILED, State.STOPPED}),
    State.CREATED: frozenset({State.DEPLOYING, State.DEPLOY_FAILED, State.STOPPED}),
    State.DEPLOYING: frozenset({State.RUNNING, State.DEPLOY_FAILED, State.STOPPED, State.PREEMPTED}),
    State.RUNNING: frozenset({State.COMPLETED, State.FAILED, State.STOPPED, State.PREEMPTED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.DEPLOY_FAILED: frozenset(),
    State.STOPPED: frozenset(),
    State.PREEMPTED: frozenset(),
}

ACTIVE = tuple(state for state in State if not state.final)


class IllegalTransitionError(Exception):
    """A bug, or another process was faster: the table does not allow this step."""

    def __init__(self, job_id: str, found: State, wanted: State) -> None:
        super().__init__(f"job {job_id} is {found}, which can't become {wanted}")
        self.found, self.wanted = found, wanted


def check(job_id: str, found: State, wanted: State) -> None:
    """Raise IllegalTransitionError unless the table allows to go from found to wanted."""
    if wanted not in TRANSITIONS[found]:
        raise IllegalTransitionError(job_id, found, wanted)
