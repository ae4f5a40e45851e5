"""Jobs that are ended in each phase of their life: nothing of them is left, and what they were saving is saved."""

import os
import signal
import time
from pathlib import Path

from benchmarks.servers.hub import HubServer
from tests.commands.node import until
from tests.trainer.home import WAIT_S, Home
from trainer.jobs.states import State

# Deaf to SIGTERM, in a session of its own, orphaned: only a PID namespace's end reaches it.
_STUBBORN = (
    "trap '' TERM; (setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' &) ; while :; do sleep 1; done"
)


def weights(home: Home) -> list[dict[str, object]]:
    return [{"source": "hf://acme/big", "mount_location": f"{home.node.m}/w"}]


def bdnfs_calls(home: Home) -> list[int]:
    return home.processes("bdnfs")


def gone(home: Home, job: str) -> None:
    until(lambda: not home.processes() and not bdnfs_calls(home), "the processes' end", WAIT_S)
    assert not home.everything_of(job)
    assert not home.directory(job).workspace.exists()
    assert not list(home.directory(job).path.glob("scratch*"))
    assert not home.node.mounts()


def test_stopped_while_its_weights_come(home: Home, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, stall=True)
    home.node.configure(upstream={"stall": "1m"})
    job = home.push(home.config("true", weights=weights(home)))
    until(lambda: "filling" in home.phases(job), "the fill", WAIT_S)
    until(lambda: bdnfs_calls(home), "bdnfs", WAIT_S)
    assert home.run("stop", job).out == f"job {job} is STOPPED\n"
    gone(home, job)
    hub.faults.clear()


def test_stopped_while_it_waits_for_its_slot(home: Home) -> None:
    home.configure(slots=1)
    blocker = home.push(home.config("sleep 600"))
    home.reaches(blocker, State.RUNNING)
    job = home.push(home.config("true"))
    home.says(job, "waits for a slot")
    home.run("stop", job)
    assert home.job(job).state is State.STOPPED
    home.run("stop", "--all")
    assert home.job(blocker).state is State.STOPPED
    assert home.run("stop", "--all").out == "no job is active\n"
    home.run("stop", code=2)
    gone(home, blocker)


def test_stopped_while_it_deploys_what_was_evicted_meanwhile(home: Home, hub: HubServer) -> None:
    home.configure(slots=1)
    blocker = home.push(home.config("sleep 600"))
    home.reaches(blocker, State.RUNNING)
    job = home.push(home.config("true", weights=weights(home)))
    home.says(job, "waits for a slot")
    home.node.run("cache", "evict")
    hub.faults.add(match="/cdn/", times=None, stall=True)
    home.node.configure(upstream={"stall": "1m"})
    home.run("stop", blocker)
    home.reaches(job, State.DEPLOYING)
    until(lambda: bdnfs_calls(home), "bdnfs", WAIT_S)
    home.run("stop", job)
    assert home.job(job).state is State.STOPPED
    assert home.phases(job)["fetching"].holds_compute
    gone(home, job)
    hub.faults.clear()


def test_stopped_while_it_runs_and_deaf_to_that(home: Home) -> None:
    home.configure(stop_grace=0.5)
    job = home.push(home.config(f"echo up; {_STUBBORN}"))
    home.says(job, "up")
    until(lambda: len(home.everything_of(job)) > 2, "the orphan", WAIT_S)
    home.run("stop", job)
    assert home.job(job).state is State.STOPPED
    assert home.job(job).exit_code == 128 + signal.SIGKILL
    gone(home, job)


def test_a_job_that_prints_without_end_can_be_stopped(home: Home) -> None:
    job = home.push(home.config("echo up; yes"))
    home.says(job, "up")
    home.run("stop", job)
    assert home.job(job).state is State.STOPPED
    gone(home, job)


def test_a_job_that_is_stopped_saves_its_work_first(home: Home) -> None:
    saved = home.node.place / "saved"
    script = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.5)\n"
        f"    open({str(saved)!r}, 'w').write('saved')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(0.1)\n"
    )
    home.configure(stop_grace=60)
    job = home.push(home.config("python3 train.py; echo never", files={"train.py": script}))
    home.says(job, "up")
    home.run("stop", job)
    assert saved.read_text() == "saved"
    assert "never" not in home.log(job)
    assert home.job(job).state is State.STOPPED
    gone(home, job)


def test_background_processes_do_not_outlive_their_job(home: Home) -> None:
    job = home.completes(home.config("setsid sleep 600 & (sleep 600 &) ; sleep 600 & echo left"))
    gone(home, job)


def test_a_job_whose_supervisor_was_killed_goes_on_and_is_adopted(home: Home) -> None:
    go = home.node.place / "go"
    job = home.push(home.config(f"echo up; while [ ! -e {go} ]; do sleep 0.05; done; echo through"))
    home.says(job, "up")
    shell = min(home.everything_of(job))
    home.kill("trainer.engine.supervisor")
    until(lambda: not home.processes("trainer.engine.supervisor"), "the supervisor's end", WAIT_S)
    assert shell in home.everything_of(job)
    assert home.job(job).state is State.RUNNING
    go.touch()
    home.says(job, "through")  # its log goes on without a supervisor
    home.run("view")
    home.reaches(job, State.COMPLETED)
    gone(home, job)


def test_a_job_whose_supervisor_was_killed_can_be_stopped(home: Home) -> None:
    job = home.push(home.config("echo up; sleep 600"))
    home.says(job, "up")
    home.kill("trainer.engine.supervisor")
    home.run("stop", job)
    assert home.job(job).state is State.STOPPED
    gone(home, job)


def test_a_job_whose_runner_was_killed_fails_and_its_processes_are_ended(home: Home) -> None:
    job = home.push(home.config("echo up; sleep 600", weights=weights(home)))
    home.says(job, "up")
    (runner,) = home.processes("trainer.engine.runner")
    os.kill(runner, signal.SIGKILL)
    found = home.reaches(job, State.FAILED)
    assert "killed" in found.error
    assert found.exit_code is None
    gone(home, job)


def test_everything_killed_at_once_is_found_and_said(home: Home) -> None:
    """As if the machine had been switched off."""
    job = home.push(home.config("echo up; sleep 600", weights=weights(home)))
    home.says(job, "up")
    home.kill("trainer.engine.")
    until(lambda: not home.everything_of(job), "the job's end", WAIT_S)
    assert home.job(job).state is State.RUNNING
    home.run("view")
    assert "the machine restarted" in home.reaches(job, State.FAILED).error
    gone(home, job)
    assert not home.node.m.exists()


def test_a_killed_job_holds_no_slot(home: Home) -> None:
    home.configure(slots=1)
    first = home.push(home.config("echo up; sleep 600"))
    home.says(first, "up")
    second = home.push(home.config("true"))
    home.says(second, "waits for a slot")
    home.kill("trainer.engine.runner")
    home.kill("trainer.engine.inside")
    home.reaches(first, State.FAILED)
    home.reaches(second, State.COMPLETED)


def test_ctrl_c_on_tail_leaves_the_job_running(home: Home) -> None:
    config = home.config("echo up; sleep 600")
    command = home.start("push", config, "--tail")
    until(lambda: "up" in command.out, "the log", WAIT_S)
    command.signal(signal.SIGINT)
    done = command.wait(130, WAIT_S)
    assert "jobs go on" in done.err
    job = done.err.partition("job ")[2].partition(" ")[0]
    assert home.job(job).state is State.RUNNING
    began = time.monotonic()
    home.run("stop", job)
    assert time.monotonic() - began < WAIT_S
    assert not Path(f"/proc/{command.process.pid}").exists()
