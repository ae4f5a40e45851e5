"""The supervisor: `python -m trainer.engine.supervisor JOB`, one process for each job that has not ended.

What it says on standard error goes to the job's `supervisor.log`.
"""

import contextlib
import os
import sys
import time
import traceback

from trainer.config import TrainerConfig, load_config
from trainer.engine.directory import JobDirectory
from trainer.engine.life import FarBackError, Life
from trainer.engine.locks import wait_lock
from trainer.engine.supervising import sweep
from trainer.errors import HomeError, TrainerError
from trainer.jobs.store import Store

# A push holds the lock until its job is recorded.
_LOCK_S = 5.0
# After that the next command's supervisor tries.
_STORE_S = 120.0


def main(argv: list[str]) -> int:
    """Take the job to its end, unless somebody else does already."""
    try:
        config = load_config(os.environ)
        directory = JobDirectory(config.job_directory(argv[1]))
        directory.make()
        lock = wait_lock(directory.supervisor_lock, _LOCK_S)
        if lock is None:
            return 0
        with contextlib.closing(os.fdopen(lock)):
            _live(config, argv[1])
        with Store(config.database) as store:
            sweep(config, store)  # its slot is free: somebody may be near now, this job itself even
    except TrainerError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _live(config: TrainerConfig, job_id: str) -> None:
    """Take the job to its end. What keeps the store from being used may pass: it is tried again for a while."""
    deadline_s = time.monotonic() + _STORE_S
    while True:
        try:
            with Store(config.database) as store, contextlib.closing(Life(config, store, job_id)) as life:
                life.live()
        except FarBackError:
            return
        except HomeError as error:
            if time.monotonic() > deadline_s:
                raise
            print(f"trainer: {error}; tried again", file=sys.stderr, flush=True)
            time.sleep(1.0)
        else:
            return


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
