"""This machine: slots and GPUs, given by priority, then age."""

from collections.abc import Sequence

from trainer.jobs.record import Job
from trainer.jobs.store import Store
from trainer.scheduling.gpus import Gpu, check_gpus

# Of the jobs that wait, so many beyond the slots have a process that waits.
_NEAR = 2


class LocalMachine:
    """A scheduler of one machine: its slots, and those of its GPUs that jobs may have.

    slots: None: one for each GPU, and one on a machine without
    """

    def __init__(self, store: Store, slots: int | None, gpus: Sequence[Gpu]) -> None:
        self._store, self._gpus = store, gpus
        self._slots = slots or max(1, len(gpus))

    def check(self, gpus: int, gpu_kind: str) -> None:
        check_gpus(self._gpus, gpus, gpu_kind)

    def acquire(self, job: Job) -> bool:
        def turn(waiting: list[Job], holding: list[Job]) -> dict[str, tuple[int, ...]]:
            return choose(waiting, holding, self._slots, self._gpus)

        # Looked at first, without keeping anybody from writing: mostly it is not its turn.
        if job.id not in turn(*self._store.queue()):
            return False
        return self._store.take_turn(turn, job.id)

    def is_near(self, job: Job) -> bool:
        waiting = [each.id for each in in_order(self._store.queue()[0])]
        return job.id not in waiting or waiting.index(job.id) < self._slots + _NEAR


def in_order(waiting: Sequence[Job]) -> list[Job]:
    """Return the jobs that wait in the order of their turns."""
    return sorted(waiting, key=lambda job: (-job.priority, job.created_s))


def choose(
    waiting: Sequence[Job], holding: Sequence[Job], slots: int, gpus: Sequence[Gpu]
) -> dict[str, tuple[int, ...]]:
    """Return the jobs that may start now, and the GPUs each gets.

    By priority, then age, and nobody passes whoever is first: a job that needs many GPUs would wait for ever.
    """
    chosen: dict[str, tuple[int, ...]] = {}
    taken = {index for job in holding for index in job.gpu_indices}
    free_slots = slots - len(holding)
    for job in in_order(waiting):
        free = [gpu.index for gpu in gpus if gpu.index not in taken and gpu.is_a(job.gpu_kind)]
        if free_slots < 1 or len(free) < job.gpus:
            break
        chosen[job.id] = tuple(free[: job.gpus])
        taken.update(chosen[job.id])
        free_slots -= 1
    return chosen
