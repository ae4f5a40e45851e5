"""The runner: `python -m trainer.engine.runner JOB_DIRECTORY LOCK_FD`, in a session of its own.

It lives as long as the job's start commands, whoever supervises: it makes the job's mount namespace, starts
`bdnfs run` (which binds the weights) with what runs inside, keeps the log, and writes down how it ended. It
holds the run's lock all along; the supervisor took it before starting this, so at no moment is a run under way
with its lock free.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from trainer.engine.directory import JobDirectory, keep_room, write_json
from trainer.engine.log import LOG_BYTES_MAX, Lines, Log
from trainer.engine.namespace import bind, unshare_mounts
from trainer.engine.pauses import Pauses
from trainer.engine.places import making
from trainer.engine.plan import RunPlan
from trainer.engine.processes import identify
from trainer.errors import TrainerError
from trainer.jobs.steps import reach
from trainer.storage.scratch import Scratch

# How soon it sees that it was told to end the job.
_POLL_S = 0.5
# What runs inside ends itself after the grace; this is for one that can't.
_MARGIN_S = 15.0
_DRAIN_S = 2.0
# How the job ended must be written down, though the job have filled the disk.
_ROOM_BYTES = 64 << 10
_TIED = str(Path(__file__).with_name("tied.py"))


class _Stop:
    """Whether this process was told to end the job, and when."""

    def __init__(self) -> None:
        self.at_s: float | None = None
        signal.signal(signal.SIGTERM, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.at_s = self.at_s or time.monotonic()


def main(argv: list[str]) -> int:
    """Run the job; write how it ended; return 0."""
    stop = _Stop()
    directory, lock = JobDirectory(Path(argv[1])), int(argv[2])
    identity = identify(os.getpid())
    write_json(directory.run, vars(identity) if identity else {})
    keep_room(directory.room, _ROOM_BYTES)
    reach("runner:locked")
    log = Log(directory.log, LOG_BYTES_MAX)
    try:
        plan = RunPlan.read(directory.plan)
        with _said_to_the_node(plan, log):
            _make_places(plan)
            reach("runner:placed")
            code = _run(plan, directory, lock, log, stop)
    except TrainerError as error:
        log.say(str(error))
        directory.room.unlink(missing_ok=True)
        write_json(directory.exit, {"code": error.exit_code, "error": str(error)})
        return 0
    reach("runner:exited")
    directory.room.unlink(missing_ok=True)
    write_json(directory.exit, {"code": code, "error": ""})
    reach("runner:told")
    return 0


@contextlib.contextmanager
def _said_to_the_node(plan: RunPlan, log: Log) -> Iterator[None]:
    """Have a node that serves from the cache here yield to the job; `bdnfs run` does it for one with weights."""
    with contextlib.ExitStack() as stack:
        if not plan.deliver:
            import bdnfs  # late: it takes a while

            try:
                config = bdnfs.load_config(plan.bdnfs_config, os.environ)
                stack.enter_context(bdnfs.job_here(config=config))
            except bdnfs.BdnfsError as error:
                log.say(f"{error}; a `bdnfs node` that serves from this cache does not yield to the job")
        yield


def _make_places(plan: RunPlan) -> None:
    if plan.namespace == "none":
        return
    unshare_mounts(user=plan.namespace == "user")
    scratch = Scratch(**{**plan.scratch, "job_dir": Path(plan.scratch["job_dir"])})
    with making([*(location for _, location in plan.places), plan.scratch_location]):
        for source, location in plan.places:
            bind(Path(source), location)
        at = scratch.mount(Path(plan.scratch_location))
        if str(at) != plan.scratch_location:
            bind(at, plan.scratch_location)


def _run(plan: RunPlan, directory: JobDirectory, lock: int, log: Log, stop: _Stop) -> int:
    inside = [sys.executable, "-P", "-m", "trainer.engine.inside", str(directory.plan)]
    command = [*plan.deliver, *inside]
    reader, writer = os.pipe2(os.O_CLOEXEC)
    process = subprocess.Popen(
        # SIGTERM, which bdnfs passes on: what runs inside then ends the job in order.
        [sys.executable, "-S", _TIED, str(os.getpid()), str(int(signal.SIGTERM)), *command],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        pass_fds=(lock,),
        # A model of the spec is found in the view; other repositories the job may still ask the Hub for.
        env={"HF_HUB_OFFLINE": "0", **os.environ},
        start_new_session=True,
    )
    os.close(writer)
    os.set_blocking(reader, False)
    lines, told, ended_s, open_ = Lines(), False, 0.0, True
    pauses = Pauses(_POLL_S)
    while open_ or process.poll() is None:
        if open_ and select.select([reader], [], [], pauses.next_s)[0]:
            data = os.read(reader, 1 << 16)
            log.add(lines.feed(data))
            open_ = bool(data)
        elif not open_:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(pauses.next_s)
        if stop.at_s is not None:
            if not told:
                process.send_signal(signal.SIGTERM)
                told = True
            elif time.monotonic() > stop.at_s + plan.grace_s + _MARGIN_S:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.poll() is not None:
            # Everything of the job is dead by now; without a PID namespace somebody may keep the pipe open.
            ended_s = ended_s or time.monotonic()
            if time.monotonic() > ended_s + _DRAIN_S:
                break
    log.add(lines.end())
    os.close(reader)
    code = process.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
