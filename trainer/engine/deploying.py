"""DEPLOYING: what is missing on the node comes, the job's places are made, its runner starts and the job begins."""

import os
import subprocess
import sys
import time
from dataclasses import asdict

from trainer.definitions import SecretReference
from trainer.engine.delivery import DeliveryError, bdnfs_command
from trainer.engine.directory import read_json
from trainer.engine.ending import Ending
from trainer.engine.layout import lay_out, namespace_to_be_had, shows_hub_view, variables
from trainer.engine.locks import is_held, try_lock
from trainer.engine.log import last_lines
from trainer.engine.plan import RunPlan
from trainer.engine.supervised import POLL_S, UPSTREAM, Supervised, text
from trainer.errors import JobError, TrainerError
from trainer.jobs.record import Job
from trainer.jobs.states import State
from trainer.jobs.steps import reach
from trainer.scheduling import machine_gpus
from trainer.storage.scratch import make_scratch
from trainer.storage.workspace import unpack_workspace

_DEPLOYS_MAX = 3


class Deploying:
    """Deploys one job: again where its runner ended before the job began, a few times."""

    def __init__(self, job: Supervised) -> None:
        self._job = job
        self._deploys = 0
        self._runner: subprocess.Popen[bytes] | None = None

    def deploy(self) -> None:
        """Bring what is missing, make the places, start the runner, see it begin.

        The run's lock is held from here on by this process, then by the runner: one that is held already is that
        of a runner which outlived its supervisor.
        """
        job = self._job
        reach("deploying:entered")
        lock = try_lock(job.directory.run_lock)
        if lock is not None:
            try:
                job.check_stop()
                job.directory.exit.unlink(missing_ok=True)
                job.directory.run.unlink(missing_ok=True)
                weights = job.write_spec()
                if weights and not self._should_be_whole():
                    job.call("fetching", "prefetch", str(job.directory.spec))
                reach("deploying:whole")
                job.store.begin(job.id, "preparing")
                _prepare(job, weights)
                reach("deploying:prepared")
                job.check_stop()
                self._launch(lock)
            finally:
                os.close(lock)
            reach("deploying:launched")
        self._see_it_begin()

    def _should_be_whole(self) -> bool:
        """Say whether everything was brought to this node before the job had its slot, and is likely there still.

        `bdnfs run --offline` looks, and starts nothing where that is not so: then it is fetched again.
        """
        phases = self._job.store.phases(self._job.id)
        return not self._deploys and any(phase.name == "filling" for phase in phases)

    def _launch(self, lock: int) -> None:
        directory = self._job.directory
        with directory.supervisor_log.open("ab") as log:
            self._runner = subprocess.Popen(
                [sys.executable, "-P", "-m", "trainer.engine.runner", str(directory.path), str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                cwd="/",
                start_new_session=True,
            )

    def _see_it_begin(self) -> None:
        """Wait until the job is RUNNING, or its runner has ended before that."""
        job = self._job
        ends = Ending(job.directory, job.config.stop_grace_s)
        while job.store.state(job.id)[0] is State.DEPLOYING:
            if job.stopped():
                ends.press()
            if not is_held(job.directory.run_lock) and job.store.state(job.id)[0] is State.DEPLOYING:
                self._did_not_begin()
                return
            time.sleep(POLL_S / 2)

    def _did_not_begin(self) -> None:
        job = self._job
        job.check_stop()
        found = read_json(job.directory.exit)
        self._deploys += 1
        if (found is None or found["code"] == UPSTREAM) and self._deploys < _DEPLOYS_MAX:
            job.log.say(
                "nothing of the job has begun; it is deployed again, what is missing is fetched first"
            )
            return
        if found is None:
            raise TrainerError(
                f"the job's runner ended {self._deploys} times before the start commands began; see "
                f"{job.directory.supervisor_log}"
            )
        (last,) = last_lines(job.directory.log, 1, own=True) or [""]
        said = found["error"] or last.partition(": ")[2] or f"exit code {found['code']}"
        raise DeliveryError(f"the job could not be started: {said}", found["code"])


def _prepare(job: Supervised, weights: bool) -> None:
    """Unpack the workspace, make the scratch, and write down what the runner is to do."""
    record, project, directory = job.record(), job.definition.project, job.directory
    namespace, said = namespace_to_be_had()
    if said:
        job.log.say(said)
    packed = read_json(directory.packed)
    if packed is None:
        raise JobError(f"{directory.packed}: what was packed can't be read; push the job again")
    unpack_workspace(directory.archive, packed["digest"], directory.workspace)
    directory.checkpoints.mkdir(exist_ok=True, mode=0o755)
    caches = job.caches()
    scratch = make_scratch(directory.path, job.config.scratch_cap_bytes())
    if scratch.said:
        job.log.say(scratch.said)
    layout = lay_out(project, directory, namespace, caches)
    runtime = project.job.runtime
    RunPlan(
        job_id=job.id,
        database=str(job.store.path),
        namespace=namespace,
        places=list(layout.binds),
        scratch={**asdict(scratch), "job_dir": str(scratch.job_dir)},
        scratch_location=layout.scratch,
        deliver=_deliver(job) if weights else [],
        writable=list(job.definition.writable),
        variables={
            **{
                name: value for name, value in runtime.environment_variables.items() if isinstance(value, str)
            },
            **variables(record, project, layout, *_gpus(job, record)),
        },
        secret_variables={
            name: value.name
            for name, value in runtime.environment_variables.items()
            if isinstance(value, SecretReference)
        },
        bdnfs_config=text(job.config.bdnfs_config),
        commands=list(runtime.start_commands),
        working_directory=layout.working,
        grace_s=job.config.stop_grace_s,
    ).write(directory.plan)


def _deliver(job: Supervised) -> list[str]:
    words = ["run", str(job.directory.spec), "--offline", "--progress", "none"]
    if shows_hub_view(job.definition.project):
        words += ["--hf-cache", str(job.directory.hub)]
    return [*bdnfs_command(*words, config=job.config.bdnfs_config), "--"]


def _gpus(job: Supervised, record: Job) -> tuple[int, str | None]:
    """Return how many GPUs the job has, and what CUDA is to see of them."""
    here = machine_gpus(job.config.gpus)
    if not job.definition.gpu_check:
        return len(here), None
    if not here:
        return 0, None
    return len(record.gpu_indices), ",".join(map(str, record.gpu_indices))
