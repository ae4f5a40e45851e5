"""Killed at every step: the next command finds the job and goes on, or ends it and says honestly why."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.commands.node import ROOT, until
from tests.trainer.dying import died, environment
from tests.trainer.home import WAIT_S, Home
from trainer.jobs.record import Job
from trainer.jobs.states import State
from trainer.jobs.steps import PUSH, RUNNER, STEPS, SUPERVISOR

# Before the start commands began, another runner does it anew; after that nobody may run them again.
_BEFORE, _AFTER, _ENDED = RUNNER[:2], RUNNER[2:5], RUNNER[5:]


def counted(home: Home) -> Path:
    """A job with weights, whose commands note each time they run."""
    return home.config(
        f"cat {home.node.m}/w/config.json && echo ran >> {home.node.place}/ran && echo saved > $BT_CHECKPOINT_DIR/one",
        weights=[{"source": "hf://acme/tiny", "mount_location": f"{home.node.m}/w"}],
        runtime="checkpointing_config=d.CheckpointingConfig(enabled=True),",
    )


def runs(home: Home) -> int:
    """How often its commands have run."""
    path = home.node.place / "ran"
    return len(path.read_text().splitlines()) if path.exists() else 0


def pushed_and_dying(home: Home, *at: str) -> str:
    dying = environment(home.node.place, ROOT, *at)
    return home.push(counted(home), **dying)


def ends(home: Home, job_id: str, *at: str) -> Job:
    """Look at the jobs, as a user does, until this one has ended; what is started by that may die, too."""
    dying = environment(home.node.place, ROOT, *at)
    deadline = time.monotonic() + WAIT_S
    while not (job := home.job(job_id)).state.final:
        assert time.monotonic() < deadline, home.all_about(job_id)
        home.run("view", **dying)
    return job


def clean(home: Home, job_id: str) -> None:
    """Check that nothing of the job is left on the machine."""
    until(lambda: not home.processes(), "the supervisors' end", WAIT_S)
    assert not home.everything_of(job_id)
    assert not home.node.mounts()
    directory = home.directory(job_id)
    assert not directory.workspace.exists()
    assert not list(directory.path.glob("scratch*"))


@pytest.mark.timeout(300)
def test_killed_at_every_step_in_turn_the_job_still_comes_to_its_end(home: Home) -> None:
    """The supervisor at each of its steps; the runner at those before the commands begin, and when it has told."""
    at = (*SUPERVISOR, *_BEFORE, *_ENDED)
    job_id = pushed_and_dying(home, *at)
    job = ends(home, job_id, *at)
    home.run("view")
    assert job.state is State.COMPLETED, home.all_about(job_id)
    assert runs(home) == 1
    until(lambda: died(home.node.place) == {*at}, "the last step", WAIT_S)
    assert [each["state"] for each in home.checkpoints(job_id)] == ["COMPLETED"]
    clean(home, job_id)


@pytest.mark.parametrize("step", _AFTER)
def test_a_runner_killed_after_they_began_fails_the_job_and_says_so(home: Home, step: str) -> None:
    job_id = pushed_and_dying(home, step)
    job = ends(home, job_id, step)
    assert died(home.node.place) == {step}
    assert job.state is State.FAILED, home.all_about(job_id)
    assert "killed" in job.error, job.error
    assert runs(home) <= 1
    clean(home, job_id)


@pytest.mark.parametrize("step", PUSH)
def test_a_push_killed_anywhere_is_a_job_or_nothing(home: Home, step: str) -> None:
    config = home.config(f"echo ran >> {home.node.place}/ran")
    command = home.start("push", config, **environment(home.node.place, ROOT, step))
    command.wait(-signal.SIGKILL, WAIT_S)
    home.run("view")
    made = list((home.path / "jobs").iterdir())
    if step == "push:packed":
        assert made == []
        return
    (directory,) = made
    assert ends(home, directory.name).state is State.COMPLETED
    assert runs(home) == 1
    clean(home, directory.name)


def test_every_step_is_killed_at() -> None:
    assert {*PUSH, *SUPERVISOR, *_BEFORE, *_AFTER, *_ENDED} == {*STEPS}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_killed_whenever_every_job_ends_and_runs_at_most_once(home: Home, seed: int) -> None:
    dice = random.Random(seed)
    home.configure(slots=2)
    ran = home.node.place / "ran"
    config = home.config(
        f"cat {home.node.m}/w/config.json && echo $BT_TRAINING_JOB_ID >> {ran} && sleep 2",
        "echo saved > $BT_CHECKPOINT_DIR/one",
        weights=[{"source": "hf://acme/tiny", "mount_location": f"{home.node.m}/w"}],
        runtime="checkpointing_config=d.CheckpointingConfig(enabled=True),",
    )
    jobs = [home.push(config) for _ in range(6)]
    kinds = [*["trainer.engine.supervisor"] * 6, "trainer.engine.runner", "trainer.engine.inside", "bdnfs"]
    until_s = time.monotonic() + 40
    while time.monotonic() < until_s and not all(home.job(job).state.final for job in jobs):
        victims = home.processes(dice.choice(kinds))
        if victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(victims), signal.SIGKILL)
        if dice.random() < 0.3:
            home.run("view")
    for job in jobs:
        found = ends(home, job)
        assert found.state in (State.COMPLETED, State.FAILED, State.DEPLOY_FAILED), home.all_about(job)
        assert found.state is State.COMPLETED or found.error, home.all_about(job)
        if found.state is State.COMPLETED:
            assert [each["state"] for each in home.checkpoints(job)] == ["COMPLETED"], home.all_about(job)
    lines = ran.read_text().split() if ran.exists() else []
    assert len(lines) == len(set(lines))
    assert {job for job in jobs if home.job(job).state is State.COMPLETED} <= set(lines)
    home.run("view")
    home.node.run("status")  # bdnfs takes away what a killed `bdnfs run` left
    for job in jobs:
        clean(home, job)
    assert not home.node.m.exists()


@pytest.mark.long
def test_a_runner_that_was_stopped_is_ended_all_the_same(home: Home) -> None:
    home.configure(stop_grace=0.2)
    job = home.push(home.config("echo up; sleep 600"))
    home.says(job, "up")
    (runner,) = home.processes("trainer.engine.runner")
    os.kill(runner, signal.SIGSTOP)
    home.run("stop", job)
    assert home.job(job).state is State.STOPPED
    clean(home, job)
