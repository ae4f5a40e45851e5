"""One job's life, step by step. Each step may be the last of this process: the next one finds where it was."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import bdnfs
from trainer.config import TrainerConfig
from trainer.definitions import SecretReference
from trainer.engine import checkpointing, places
from trainer.engine.definition import Definition
from trainer.engine.delivery import DeliveryError, Moved, StopRequestedError, bdnfs_command, call
from trainer.engine.directory import JobDirectory, read_json, write_json
from trainer.engine.layout import lay_out, namespace_to_be_had, shows_hub_view, variables
from trainer.engine.locks import is_held, try_lock
from trainer.engine.log import Log, last_lines
from trainer.engine.plan import RunPlan
from trainer.engine.processes import ProcessId
from trainer.engine.supervising import sweep
from trainer.errors import HomeError, JobError, TrainerError
from trainer.jobs.record import Job
from trainer.jobs.states import State
from trainer.jobs.steps import reach
from trainer.jobs.store import Store
from trainer.loading import spec_of
from trainer.scheduling import LocalMachine, machine_gpus
from trainer.storage.checkpoint_sync import CheckpointSync, open_checkpoint_sync
from trainer.storage.scratch import clear_scratch, make_scratch, remove_tree
from trainer.storage.training_cache import check_room, project_cache, team_cache, watched
from trainer.storage.workspace import unpack_workspace

POLL_S = 0.1
_SWEEP_S = 5.0
_NOTE_S = 1.0
# What runs inside ends itself after the grace; this is for one that can't.
_MARGIN_S = 30.0
# The exit code of `bdnfs` where upstream gives no usable answer; offline, where something is not on the node.
_UPSTREAM = 5
_DEPLOYS_MAX, _CALLS_MAX = 3, 3
_RUN_END_S = 120.0
_RECORD_S = 60.0
_LAST_LINES = 10
# How long a job that was stopped waits for the rest of its checkpoints.
_SYNC_AFTER_STOP_S = 60.0


class FarBackError(Exception):
    """The job waits far back in the queue: whoever ends, or waits before it, starts a supervisor when it is near."""


class Life:
    """Takes one job from where it is to its end. Only the holder of its supervisor's lock does that."""

    def __init__(self, config: TrainerConfig, store: Store, job_id: str) -> None:
        self._config, self._store, self._id = config, store, job_id
        self._directory = JobDirectory(config.job_directory(job_id))
        self._log = Log(self._directory.log)
        self._definition = Definition.of(store.job(job_id))
        self._deploys = 0
        self._swept_s = 0.0

    def close(self) -> None:
        self._log.close()

    def live(self) -> None:
        """Go on until the job has ended.

        Raises HomeError where that can't be recorded, FarBackError where nobody needs to wait for its turn yet.
        """
        steps: dict[State, Callable[[], None]] = {
            State.PENDING: self._pending,
            State.CREATED: self._created,
            State.DEPLOYING: self._deploying,
            State.RUNNING: self._running,
        }
        while not (state := self._store.state(self._id)[0]).final:
            try:
                steps[state]()
            except StopRequestedError:
                self._end(State.STOPPED)
            except (HomeError, FarBackError):
                raise
            except Exception as error:
                # Whatever it is: a job that can't go on must not be tried again and again.
                began = self._store.state(self._id)[0] is State.RUNNING
                self._end(State.FAILED if began else State.DEPLOY_FAILED, _said(error))
        self._tidy()

    # ---- what every step uses ------------------------------------------------------------------

    def _stopped(self) -> bool:
        return self._store.state(self._id)[1]

    def _check_stop(self) -> None:
        if self._stopped():
            raise StopRequestedError

    def _job(self) -> Job:
        return self._store.job(self._id)

    def _end(self, state: State, error: str = "", code: int | None = None) -> None:
        """Clear what is left of the run, then record the end: whoever reads it finds nothing of the job."""
        self._end_run()
        error = _joined(error, self._tidy())
        reach("ending:cleared")
        # Said first: whoever follows the log reads it out once the end is recorded.
        self._log.say(f"{state}{f': {error}' if error else ''}")
        self._record_end(state, error, code)
        reach("ending:committed")

    def _record_end(self, state: State, error: str, code: int | None) -> None:
        """Record the end, tried again while the disk is full; the next supervisor tries after that."""
        deadline_s = time.monotonic() + _RECORD_S
        while True:
            try:
                self._store.move(self._id, state, error=error, exit_code=code)
            except HomeError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(1.0)
            else:
                return

    @contextlib.contextmanager
    def _if_there_is_room(self) -> Iterator[None]:
        """What is nice to have recorded, and must not end a job where the disk is full."""
        try:
            yield
        except HomeError as error:
            print(f"trainer: {error}", file=sys.stderr, flush=True)

    def _tidy(self) -> str:
        """Take away what was for the run alone; return what could not be."""
        problems = []
        clearings: tuple[Callable[[], object], ...] = (
            partial(clear_scratch, self._directory.path),
            partial(remove_tree, self._directory.workspace),
            partial(remove_tree, self._directory.hub),
            places.give_back,
        )
        for clear in clearings:
            try:
                clear()
            except (TrainerError, OSError) as error:
                problems.append(str(error))
        return _joined(*problems)

    def _call(self, phase: str, *words: str) -> str:
        """Run `bdnfs`, with what it moves recorded as the phase's."""
        self._store.begin(self._id, phase)
        noted_s, last = 0.0, Moved()

        def moved(now: Moved) -> None:
            nonlocal noted_s, last
            last = now
            if time.monotonic() > noted_s + _NOTE_S:
                noted_s = time.monotonic()
                self._store.moved(self._id, phase, now.total_bytes, now.tier_bytes)

        command = bdnfs_command(*words, "--progress", "json", config=self._config.bdnfs_config)
        for again in range(_CALLS_MAX):
            try:
                out = call(command, stopped=self._stopped, say=self._log.say, moved=moved)
                break
            except DeliveryError as error:
                if not error.killed or again == _CALLS_MAX - 1:
                    raise
                self._log.say(f"{error}; it goes on where that was")
        if last.total_bytes:
            self._store.moved(self._id, phase, last.total_bytes, last.tier_bytes)
        return out

    # ---- PENDING, CREATED ----------------------------------------------------------------------

    def _pending(self) -> None:
        self._check_stop()
        self._store.move(self._id, State.CREATED, phase="resolving")
        self._log.say("CREATED: no slot and no GPU is held until everything is brought here")

    def _created(self) -> None:
        reach("created:entered")
        if self._job().ready_s is None:
            self._check_stop()
            self._bring()
            for path in (each for each in self._caches(self._job()).values() if each.name != "huggingface"):
                check_room(
                    path, self._config.cache_bytes
                )  # it looks at every file: not while compute is held
            self._store.ready(self._id)
            reach("created:queued")
        machine = LocalMachine(self._store, self._config.slots, machine_gpus(self._config.gpus))
        said = False
        while not machine.acquire(self._job()):
            if not said:
                self._log.say("waits for a slot of this machine, by priority, then age")
                said = True
            self._check_stop()
            if not machine.is_near(self._job()):
                raise FarBackError
            self._sweep()
            time.sleep(POLL_S)
        self._log.say("DEPLOYING")

    def _sweep(self) -> None:
        """Others that lost their supervisor may hold the slot this one waits for."""
        if time.monotonic() > self._swept_s + _SWEEP_S:
            self._swept_s = time.monotonic()
            sweep(self._config, self._store, but=self._id)

    def _bring(self) -> None:
        """Resolve what the job declares, and bring it near: into the mirror, or else into the node's cache."""
        if not self._write_spec():
            return
        spec = str(self._directory.spec)
        if not self._directory.spec_lock.exists():
            with self._if_upstream_answers():
                self._call("resolving", "lock", spec)
        reach("created:resolved")
        config = bdnfs.load_config(_text(self._config.bdnfs_config), os.environ)
        mirrored = False
        if config.mirror is not None:
            with self._if_upstream_answers():
                self._call("mirroring", "mirror", spec)
                mirrored = True
        if not mirrored:
            self._call("filling", "prefetch", spec)
        reach("created:whole")

    @contextlib.contextmanager
    def _if_upstream_answers(self) -> Iterator[None]:
        """Go on where upstream gives no answer: what was seen last may be here, or in the mirror.

        If it is not, `bdnfs prefetch` says what is wrong.
        """
        try:
            yield
        except DeliveryError as error:
            if error.exit_code != _UPSTREAM:
                raise
            self._log.say(f"{error}; what was seen last is used, if it is here or in the mirror")

    def _write_spec(self) -> bool:
        """Write the spec of the job's weights, the checkpoints to load among them; say whether there are any."""
        if self._directory.spec.exists():
            return bool(read_json(self._directory.spec)["weights"])
        spec = spec_of(self._definition.project)
        loading = self._definition.project.job.runtime.load_checkpoint_config
        if loading is not None and loading.enabled:
            found = checkpointing.sources_to_load(self._config, self._store, self._job(), loading)
            spec["weights"] += [each.as_weights() for each in found]
        write_json(self._directory.spec, spec)
        return bool(spec["weights"])

    # ---- DEPLOYING -----------------------------------------------------------------------------

    def _deploying(self) -> None:
        """Bring what is missing, make the places, start the runner, see it begin.

        The run's lock is held from here on by this process, then by the runner: one that is held already is that
        of a runner which outlived its supervisor.
        """
        reach("deploying:entered")
        lock = try_lock(self._directory.run_lock)
        if lock is not None:
            try:
                self._check_stop()
                self._directory.exit.unlink(missing_ok=True)
                self._directory.run.unlink(missing_ok=True)
                weights = self._write_spec()
                if weights and not self._should_be_whole():
                    self._call("fetching", "prefetch", str(self._directory.spec))
                reach("deploying:whole")
                self._store.begin(self._id, "preparing")
                self._prepare(weights)
                reach("deploying:prepared")
                self._check_stop()
                self._launch(lock)
            finally:
                os.close(lock)
            reach("deploying:launched")
        self._see_it_begin()

    def _should_be_whole(self) -> bool:
        """Say whether everything was brought to this node before the job had its slot, and is likely there still.

        `bdnfs run --offline` looks, and starts nothing where that is not so: then it is fetched again.
        """
        return not self._deploys and any(phase.name == "filling" for phase in self._store.phases(self._id))

    def _prepare(self, weights: bool) -> None:
        job, project = self._job(), self._definition.project
        namespace, said = namespace_to_be_had()
        if said:
            self._log.say(said)
        packed = read_json(self._directory.packed)
        if packed is None:
            raise JobError(f"{self._directory.packed}: what was packed can't be read; push the job again")
        unpack_workspace(self._directory.archive, packed["digest"], self._directory.workspace)
        self._directory.checkpoints.mkdir(exist_ok=True, mode=0o755)
        caches = self._caches(job)
        scratch = make_scratch(self._directory.path, self._config.scratch_cap_bytes())
        if scratch.said:
            self._log.say(scratch.said)
        layout = lay_out(project, self._directory, namespace, caches)
        runtime = project.job.runtime
        RunPlan(
            job_id=self._id,
            database=str(self._store.path),
            namespace=namespace,
            places=list(layout.binds),
            scratch={**asdict(scratch), "job_dir": str(scratch.job_dir)},
            scratch_location=layout.scratch,
            deliver=self._deliver() if weights else [],
            writable=list(self._definition.writable),
            variables={
                **{
                    name: value
                    for name, value in runtime.environment_variables.items()
                    if isinstance(value, str)
                },
                **variables(job, project, layout, *self._gpus(job)),
            },
            secret_variables={
                name: value.name
                for name, value in runtime.environment_variables.items()
                if isinstance(value, SecretReference)
            },
            bdnfs_config=_text(self._config.bdnfs_config),
            commands=list(runtime.start_commands),
            working_directory=layout.working,
            grace_s=self._config.stop_grace_s,
        ).write(self._directory.plan)

    def _deliver(self) -> list[str]:
        words = ["run", str(self._directory.spec), "--offline", "--progress", "none"]
        if shows_hub_view(self._definition.project):
            words += ["--hf-cache", str(self._directory.hub)]
        return [*bdnfs_command(*words, config=self._config.bdnfs_config), "--"]

    def _gpus(self, job: Job) -> tuple[int, str | None]:
        """Return how many GPUs the job has, and what CUDA is to see of them."""
        here = machine_gpus(self._config.gpus)
        if not self._definition.gpu_check:
            return len(here), None
        if not here:
            return 0, None
        return len(job.gpu_indices), ",".join(map(str, job.gpu_indices))

    def _caches(self, job: Job) -> dict[str, Path]:
        """Return the directories of the training cache, by the name each has below the cache's base."""
        cache = self._definition.project.job.runtime.cache
        if not cache.enabled:
            return {}
        own = project_cache(self._config.home, job.project_id)
        found = {"user_artifacts": own}
        if job.team:
            found["team_artifacts"] = team_cache(self._config.home, job.team)
        if cache.enable_legacy_hf_mount:
            found["huggingface"] = own / "huggingface"
            found["huggingface"].mkdir(exist_ok=True)
        return found

    def _launch(self, lock: int) -> None:
        with self._directory.supervisor_log.open("ab") as log:
            self._runner = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "trainer.engine.runner"),
                    *(str(self._directory.path), str(lock)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                cwd="/",
                start_new_session=True,
            )

    def _see_it_begin(self) -> None:
        """Wait until the job is RUNNING, or its runner has ended before that."""
        ends = _Ending(self._directory, self._config.stop_grace_s)
        while self._store.state(self._id)[0] is State.DEPLOYING:
            if self._stopped():
                ends.press()
            if not is_held(self._directory.run_lock) and self._store.state(self._id)[0] is State.DEPLOYING:
                self._did_not_begin()
                return
            time.sleep(POLL_S / 2)

    def _did_not_begin(self) -> None:
        self._check_stop()
        found = read_json(self._directory.exit)
        self._deploys += 1
        if (found is None or found["code"] == _UPSTREAM) and self._deploys < _DEPLOYS_MAX:
            self._log.say(
                "nothing of the job has begun; it is deployed again, what is missing is fetched first"
            )
            return
        if found is None:
            raise TrainerError(
                f"the job's runner ended {self._deploys} times before the start commands began; see "
                f"{self._directory.supervisor_log}"
            )
        (last,) = last_lines(self._directory.log, 1, own=True) or [""]
        said = found["error"] or last.partition(": ")[2] or f"exit code {found['code']}"
        raise DeliveryError(f"the job could not be started: {said}", found["code"])

    # ---- RUNNING -------------------------------------------------------------------------------

    def _running(self) -> None:
        reach("running:seen")
        job = self._job()
        with ExitStack() as stack:
            sync = self._open_sync(stack)
            for path in self._caches(job).values():
                stack.enter_context(watched(path, self._config.cache_bytes, self._full))
            ends = _Ending(self._directory, self._config.stop_grace_s)
            while is_held(self._directory.run_lock):
                if self._stopped():
                    ends.press()
                time.sleep(POLL_S)
            with self._if_there_is_room():
                self._store.release(self._id, "clearing" if sync is None else "syncing")
            reach("ending:exited")
            if sync is not None:
                self._finish(sync)
            reach("ending:synced")
        with self._if_there_is_room():
            self._store.begin(self._id, "clearing")
        self._conclude()

    def _open_sync(self, stack: ExitStack) -> CheckpointSync | None:
        if not self._definition.project.job.runtime.checkpointing_config.enabled:
            return None
        self._store.note(self._id, sync="SYNCING")
        checkpointing.records(self._config).mkdir(parents=True, exist_ok=True, mode=0o700)
        return stack.enter_context(
            open_checkpoint_sync(
                self._directory.checkpoints,
                checkpointing.open_store(self._config),
                self._id,
                record=checkpointing.record(self._config, self._id),
                say=self._log.say,
            )
        )

    def _full(self, line: str) -> None:
        """The training cache is over its cap: say so. It is the user's to clear; nothing of theirs is deleted."""
        self._log.say(line)

    def _finish(self, sync: CheckpointSync) -> None:
        """Wait for the last checkpoints; a user who stops the job doesn't wait for ever."""
        limit_s = time.monotonic() + _SYNC_AFTER_STOP_S
        report = sync.finish(
            self._config.checkpoint_wait_s,
            goes_on=lambda progress: time.monotonic() < limit_s or not self._stopped(),
        )
        self._log.say(report.said)
        with self._if_there_is_room():
            self._store.note(self._id, sync=report.state)
        if report.state == "COMPLETED":
            remove_tree(self._directory.checkpoints)
        else:
            self._unsynced = checkpointing.said_of_missing(self._id, self._directory, report)

    _unsynced = ""

    def _conclude(self) -> None:
        """Record how it ended, by what the runner wrote down."""
        found = read_json(self._directory.exit)
        code = None if found is None else int(found["code"])
        if self._stopped():
            self._end(State.STOPPED, self._unsynced, code)
        elif code is None:
            self._clear_mounts()
            self._end(
                State.FAILED,
                _joined(
                    "the process that ran the job was killed, or the machine restarted; its exit code is not known",
                    self._unsynced,
                ),
            )
        elif code == 0:
            self._end(State.COMPLETED, self._unsynced, 0)
        elif code is not None:
            lines = last_lines(self._directory.log, _LAST_LINES)
            said = f"the start commands ended with exit code {code}{_signal_named(code)}"
            if lines:
                said += "; the last lines: " + " | ".join(lines)
            self._end(State.FAILED, _joined(said, self._unsynced), code)

    def _clear_mounts(self) -> None:
        """Have bdnfs remove the directories that a killed `bdnfs run` left; any later call of it would, too."""
        with contextlib.suppress(DeliveryError, StopRequestedError):
            command = bdnfs_command("status", config=self._config.bdnfs_config)
            call(command, stopped=lambda: False, say=self._log.say)

    def _end_run(self) -> None:
        """Have nothing of a run left, whatever state it was in."""
        ends = _Ending(self._directory, self._config.stop_grace_s)
        deadline_s = time.monotonic() + 2 * self._config.stop_grace_s + _RUN_END_S
        while is_held(self._directory.run_lock):
            if time.monotonic() > deadline_s:
                self._log.say(
                    f"the job's processes could not be ended; {self._directory.run} says which one holds them"
                )
                return
            ends.press()
            time.sleep(POLL_S)


class _Ending:
    """Tells a runner to end its job: kindly, and after its grace by force. Never waits."""

    def __init__(self, directory: JobDirectory, grace_s: float) -> None:
        self._directory, self._grace_s = directory, grace_s
        self._told_s: float | None = None

    def press(self) -> None:
        """Do what is to be done now; call it again and again."""
        found = read_json(self._directory.run)
        if not found:
            return  # it is only starting; the lock is its
        runner = ProcessId(**found)
        if self._told_s is None:
            runner.send(signal.SIGTERM)
            self._told_s = time.monotonic()
        elif time.monotonic() > self._told_s + self._grace_s + _MARGIN_S:
            runner.send(signal.SIGKILL)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _said(error: Exception) -> str:
    """Return what a user is told; what nobody expected goes to the supervisor's log as well."""
    if isinstance(error, TrainerError | bdnfs.BdnfsError):
        return str(error)
    traceback.print_exception(error)
    return f"a bug in the trainer ({type(error).__name__}: {error}); please report it with the job's supervisor.log"


def _signal_named(code: int) -> str:
    """Return what an exit code above 128 means, as shells have it."""
    if code == 128 + signal.SIGKILL:
        return " (killed by SIGKILL; for lack of memory? `dmesg` says)"
    try:
        return f" (ended by {signal.Signals(code - 128).name})" if code > 128 else ""
    except ValueError:
        return ""


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
