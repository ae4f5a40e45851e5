"""One job's life, step by step. Each step may be the last of this process: the next one finds where it was."""

import traceback
from collections.abc import Callable

import bdnfs
from trainer.config import TrainerConfig
from trainer.engine.bringing import FarBackError, bring_and_wait
from trainer.engine.delivery import StopRequestedError
from trainer.engine.deploying import Deploying
from trainer.engine.ending import end, tidy
from trainer.engine.running import see_it_end
from trainer.engine.supervised import Supervised
from trainer.errors import HomeError, TrainerError
from trainer.jobs.states import State
from trainer.jobs.store import Store

__all__ = ["FarBackError", "Life"]


class Life:
    """Takes one job from where it is to its end. Only the holder of its supervisor's lock does that."""

    def __init__(self, config: TrainerConfig, store: Store, job_id: str) -> None:
        self._job = Supervised(config, store, job_id)
        self._deploying = Deploying(self._job)

    def close(self) -> None:
        self._job.close()

    def live(self) -> None:
        """Go on until the job has ended.

        Raises HomeError where that can't be recorded, FarBackError where nobody needs to wait for its turn yet.
        """
        job = self._job
        steps: dict[State, Callable[[], None]] = {
            State.PENDING: self._pending,
            State.CREATED: lambda: bring_and_wait(job),
            State.DEPLOYING: self._deploying.deploy,
            State.RUNNING: lambda: end(job, *see_it_end(job)),
        }
        while not (state := job.store.state(job.id)[0]).final:
            try:
                steps[state]()
            except StopRequestedError:
                end(job, State.STOPPED)
            except (HomeError, FarBackError):
                raise
            except Exception as error:
                # Whatever it is: a job that can't go on must not be tried again and again.
                began = job.store.state(job.id)[0] is State.RUNNING
                end(job, State.FAILED if began else State.DEPLOY_FAILED, _said(error))
        tidy(job)

    def _pending(self) -> None:
        self._job.check_stop()
        self._job.store.move(self._job.id, State.CREATED, phase="resolving")
        self._job.log.say("CREATED: no slot and no GPU is held until everything is brought here")


def _said(error: Exception) -> str:
    """Return what a user is told; what nobody expected goes to the supervisor's log as well."""
    if isinstance(error, TrainerError | bdnfs.BdnfsError):
        return str(error)
    traceback.print_exception(error)
    return f"a bug in the trainer ({type(error).__name__}: {error}); please report it with the job's supervisor.log"
