"""What the engine asks of a scheduler. Jobs across machines come behind this port, not into the engine."""

from typing import Protocol

from trainer.jobs.record import Job


class Scheduler(Protocol):
    """Decides who has compute. A job gives its own back by ending: there is nothing else to release."""

    def check(self, gpus: int, gpu_kind: str) -> None:
        """Raise NoGpuError where no machine here could ever run such a job."""

    def acquire(self, job: Job) -> bool:
        """Let a waiting job have its slot and GPUs if it is its turn (CREATED becomes DEPLOYING); say whether.

        Never waits: whoever waits asks again.
        """

    def is_near(self, job: Job) -> bool:
        """Say whether somebody should be waiting for this job's turn; those further back need nobody yet."""
