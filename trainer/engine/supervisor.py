"""The supervisor: `python -m trainer.engine.supervisor JOB`, one process for each job that has not ended.

What it says on standard error goes to the job's `supervisor.log`.
"""

import contextlib
import os
import sys
import time
import traceback

from trainer.config import load_config
from trainer.engine.directory import JobDirectory
from trainer.engine.life import FarBackError, Life
from trainer.engine.locks import try_lock
from trainer.engine.supervising import sweep
from trainer.errors import TrainerError
from trainer.jobs.store import Store

# A push holds the lock until its job is recorded.
_LOCK_S = 5.0


def main(argv: list[str]) -> int:
    """Take the job to its end, unless somebody else does already."""
    try:
        config = load_config(os.environ)
        directory = JobDirectory(config.job_directory(argv[1]))
        directory.make()
        deadline_s = time.monotonic() + _LOCK_S
        while (lock := try_lock(directory.supervisor_lock)) is None:
            if time.monotonic() > deadline_s:
                return 0
            time.sleep(0.05)
        with Store(config.database) as store:
            life = Life(config, store, argv[1])
            try:
                with contextlib.suppress(FarBackError):
                    life.live()
            finally:
                life.close()
                os.close(lock)
            sweep(config, store)  # its slot is free: somebody may be near now, this job itself even
    except TrainerError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
