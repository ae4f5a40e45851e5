"""The life of a job, as its user sees it: from push to its end."""

import json
import shutil
import subprocess
import sys

import pytest

from bdnfs.cache.jobs import is_job_here
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, TINY
from tests.commands.node import ROOT, TOKEN, until
from tests.trainer.home import WAIT_S, Home
from trainer.jobs.states import State

TINY_BYTES = sum(map(len, TINY.values()))


def weights(home: Home, repository: str = "acme/tiny", name: str = "w", **more: object) -> dict[str, object]:
    return {"source": f"hf://{repository}", "mount_location": str(home.node.m / name), **more}


def test_a_job_without_weights_completes_and_its_log_is_shown(home: Home) -> None:
    config = home.config(
        "echo from $PWD", "echo to stderr >&2; cat hello.txt", files={"hello.txt": "hello\n"}
    )
    done = home.run("push", config, "--tail")
    job = done.err.partition("job ")[2].partition(" ")[0]
    lines = [line.partition(" ")[2] for line in done.out.splitlines()]
    assert lines[-4:] == ["from /b10/workspace", "to stderr", "hello", "trainer: COMPLETED"]
    assert "the image pytorch/pytorch:2 is not used" in done.err
    assert home.job(job).exit_code == 0
    assert not home.everything_of(job)
    assert home.run("logs", job).out == done.out


@pytest.mark.parametrize("weights", [True, False])
def test_a_node_that_serves_knows_of_the_job(home: Home, hub: HubServer, weights: bool) -> None:
    delivered = [{"source": "hf://acme/tiny", "mount_location": f"{home.node.m}/w"}] if weights else []
    job = home.push(home.config("echo up; sleep 600", weights=delivered))
    home.says(job, "up")
    assert is_job_here(home.node.cache)
    home.run("stop", job)
    assert not is_job_here(home.node.cache)


def test_a_job_without_weights_runs_though_there_can_be_no_cache(home: Home) -> None:
    home.node.cache.touch()
    job = home.completes(home.config("echo up"))
    assert "up" in home.log(job)
    assert any("does not yield to the job" in line for line in home.log(job))
    home.node.cache.unlink()


def test_weights_are_whole_read_only_and_gone_with_the_job(home: Home, hub: HubServer) -> None:
    at = home.node.m / "w"
    config = home.config(
        f"cat {at}/config.json; ls {at}; grep {at} /proc/self/mountinfo; ! touch {at}/x",
        weights=[weights(home)],
    )
    job = home.completes(config)
    log = home.log(job)
    assert '{"architectures": ["Tiny"]}' in log
    assert "config.json" in log
    assert any(" ro,nosuid,nodev" in line for line in log)
    assert not home.node.mounts()
    assert not home.node.m.exists()
    phases = home.phases(job)
    assert phases["filling"].tier_bytes == {"origin": TINY_BYTES}
    assert phases["filling"].total_bytes == TINY_BYTES
    assert not phases["filling"].holds_compute
    assert phases["fetching"].tier_bytes == {}
    shown = json.loads(home.run("view", job, "-o", "json").out)
    assert {phase["phase"]: phase["held_compute"] for phase in shown["phases"]} == {
        "pending": False, "resolving": False, "filling": False, "queued": False,
        "fetching": True, "preparing": True, "running": True, "clearing": False,
    }  # fmt: skip
    said = home.run("view", job).out
    assert "compute was held for" in said
    assert f"origin {TINY_BYTES / 1024:.1f} KiB" in said


def test_running_begins_only_after_every_weight_is_whole(home: Home, hub: HubServer) -> None:
    """Watch the file system and the clock while the weights trickle in."""
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=8e6)
    at = home.node.m
    config = home.config(
        f"date +%s.%N; cat {at}/a/model.safetensors {at}/b/model.safetensors | wc -c",
        weights=[weights(home, "acme/big", "a"), weights(home, "acme/tiny", "b")],
    )
    job = home.push(config)
    seen: list[tuple[bool, State]] = []

    def ended() -> bool:
        # The state first: a tree that is not there after that was not there before it either.
        state = home.job(job).state
        trees = [path for path in (home.node.cache / "trees").glob("*") if ".tmp" not in path.name]
        whole = [all(file.stat().st_size for file in tree.glob("*.safetensors")) for tree in trees]
        seen.append((len(whole) == 2 and all(whole), state))
        return state.final

    until(ended, "the job's end")
    assert home.job(job).state is State.COMPLETED, home.all_about(job)
    assert {state for whole, state in seen if not whole} <= {State.PENDING, State.CREATED, State.DEPLOYING}
    assert (False, State.CREATED) in seen
    shown = json.loads(home.run("view", job, "-o", "json").out)
    running_s = next(each["at_s"] for each in shown["transitions"] if each["state"] == "RUNNING")
    blobs = list((home.node.cache / "blobs").rglob("*"))
    assert sum(path.stat().st_size for path in blobs if path.is_file()) >= BIG_BYTES
    assert all(path.stat().st_mtime <= running_s for path in blobs if path.is_file())
    began, size = home.log(job)[-3:-1]
    assert float(began) >= running_s
    assert int(size) == len(BIG["model.safetensors"]) + len(TINY["model.safetensors"])
    phases = home.phases(job)
    assert phases["filling"].tier_bytes == {"origin": BIG_BYTES + TINY_BYTES}
    assert phases["filling"].ended_s is not None
    assert phases["filling"].ended_s <= phases["fetching"].began_s  # no compute was held meanwhile


def test_with_a_mirror_the_bytes_go_there_first_and_to_the_node_when_it_has_its_slot(
    home: Home, hub: HubServer
) -> None:
    home.node.configure(mirror=str(home.node.place / "mirror"))
    job = home.completes(home.config(f"cat {home.node.m}/w/config.json", weights=[weights(home)]))
    phases = home.phases(job)
    assert phases["mirroring"].tier_bytes == {"origin": TINY_BYTES}
    assert phases["fetching"].tier_bytes == {"mirror": TINY_BYTES}
    assert "filling" not in phases
    assert hub.bytes_sent == TINY_BYTES


def test_with_upstream_down_a_job_runs_on_what_was_seen_last(home: Home, hub: HubServer) -> None:
    config = home.config(f"cat {home.node.m}/w/config.json", weights=[weights(home)])
    home.completes(config)
    hub.stop()
    job = home.completes(config)
    assert TINY["config.json"].decode().strip() in home.log(job)
    assert any("what was seen last is used" in line for line in home.log(job))
    other = home.config("true", weights=[weights(home, "acme/big")])
    assert "acme/big" in home.job(home.push(other, "--tail", code=10)).error


def test_two_jobs_with_the_same_path_and_other_sources_run_side_by_side(home: Home) -> None:
    files = home.node.place
    # Each waits for the other: they can only end if they run at once.
    meet = f"touch {files}/$BT_TRAINING_JOB_NAME; while [ ! -e {files}/one -o ! -e {files}/two ]; do sleep 0.05; done"
    jobs = []
    for name, repository in (("one", "acme/tiny"), ("two", "acme/big")):
        config = home.config(
            f"{meet}; stat -c %s {home.node.m}/w/model.safetensors", weights=[weights(home, repository)]
        )
        jobs.append(home.push(config, "--job-name", name))
    for job, expected in zip(jobs, (TINY, BIG), strict=True):
        home.reaches(job, State.COMPLETED)
        assert str(len(expected["model.safetensors"])) in home.log(job)


def test_a_start_command_that_fails_is_named_with_its_code_and_last_lines(home: Home) -> None:
    config = home.config("echo fine", "set -e; echo about to fail; (exit 42); echo never", "echo nor this")
    done = home.run("push", config, "--tail", code=10)
    assert "exit code 42" in done.error
    assert "about to fail" in done.error
    assert "never" not in done.out
    assert "nor this" not in done.out
    assert "trainer: start command 2 of 3 ended with exit code 42" in done.out
    (shown,) = json.loads(home.run("view", "-o", "json").out)
    assert (shown["state"], "about to fail" in shown["error"]) == ("FAILED", True)


PREFIX = """python -c 'import sys; print("python of", sys.prefix)'"""


def test_python_is_the_one_of_ones_path_and_else_the_trainers(home: Home) -> None:
    programs, own = home.node.place / "programs", home.node.place / "own"
    for place in (programs, own):
        place.mkdir()
    for name in ("bash", "cat", "unshare", "mkfs.ext4"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    pushed = home.run("push", home.config(PREFIX), PATH=str(programs), VIRTUAL_ENV="")
    assert "your PATH's" not in pushed.err
    job = pushed.out.partition("job ")[2].partition(" ")[0]
    home.reaches(job, State.COMPLETED)
    assert f"python of {sys.prefix}" in home.log(job)

    (own / "python").write_text("#!/bin/sh\necho my own\n")
    (own / "python").chmod(0o755)
    pushed = home.run("push", home.config(PREFIX), PATH=f"{own}:{programs}", VIRTUAL_ENV="")
    assert (
        f"`python` in the start commands is {own}/python, your PATH's; this trainer runs with" in pushed.err
    )
    job = pushed.out.partition("job ")[2].partition(" ")[0]
    home.reaches(job, State.COMPLETED)
    assert "my own" in home.log(job)
    chosen = home.run("push", home.config(PREFIX), PATH=f"{own}:{programs}", VIRTUAL_ENV=str(own))
    assert "your PATH's" not in chosen.err
    home.reaches(chosen.out.partition("job ")[2].partition(" ")[0], State.COMPLETED)


def test_commands_share_one_shell_and_a_job_that_is_killed_fails(home: Home) -> None:
    config = home.config("cd /tmp; WORD=carried", "echo $WORD from $PWD", "kill -KILL $$")
    job = home.push(config, "--tail", code=10)
    assert "carried from /tmp" in home.log(job)
    assert home.job(job).exit_code == 137
    assert "SIGKILL" in home.job(job).error


def test_upstream_that_has_no_such_repository_ends_the_job_before_it_has_a_slot(home: Home) -> None:
    config = home.config("true", weights=[weights(home, "acme/nothing")])
    job = home.push(config, "--tail", code=10)
    found = home.job(job)
    assert found.state is State.DEPLOY_FAILED
    assert "acme/nothing" in found.error
    assert "fetching" not in home.phases(job)


def test_secrets_reach_the_job_and_nothing_else(home: Home) -> None:
    (home.node.home / "secrets").mkdir()
    (home.node.home / "secrets" / "planted").write_text(TOKEN + "\n")
    home.node.configure(secrets={"directory": str(home.node.home / "secrets")})
    config = home.config(
        f"[ ${{#KEY}} = {len(TOKEN)} ] && [ $PLAIN = word ] && cat {home.node.m}/w/config.json",
        variables="'KEY': d.SecretReference(name='planted'), 'PLAIN': 'word'",
        weights=[weights(home, "acme/gated", auth_secret_name="planted")],
    )
    home.completes(config)
    found = subprocess.run(["grep", "-rlaF", "--", TOKEN, home.path], capture_output=True, text=True)
    assert found.stdout == ""


def test_a_missing_secret_is_named_before_anything_is_fetched_or_recorded(home: Home, hub: HubServer) -> None:
    hub.reset()
    config = home.config(
        "true", variables="'KEY': d.SecretReference(name='nowhere')", weights=[weights(home)]
    )
    done = home.run("push", config, code=3)
    assert "'nowhere'" in done.error
    assert "KEY" in done.error
    assert not hub.requests
    assert json.loads(home.run("view", "-o", "json").out) == []


def test_a_secret_that_went_meanwhile_is_named_and_nothing_of_the_job_runs(home: Home) -> None:
    home.configure(slots=1)
    blocker = home.push(home.config("sleep 600"))
    config = home.config("echo ran", variables="'KEY': d.SecretReference(name='passing')")
    secrets = home.node.home / ".config" / "bdnfs" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "passing").write_text("word")
    job = home.push(config)
    home.says(job, "waits for a slot")
    (secrets / "passing").unlink()
    home.run("stop", blocker)
    found = home.reaches(job, State.DEPLOY_FAILED)
    assert "passing" in found.error
    assert "ran" not in home.log(job)


def test_writable_weights_change_in_the_jobs_scratch_alone(home: Home) -> None:
    at = home.node.m / "w"
    config = home.config(
        f"echo more >> {at}/config.json; rm {at}/empty.txt; ls {at}; tail -n1 {at}/config.json",
        weights=[weights(home)],
    )
    job = home.completes(config, "--writable", at)
    assert home.log(job)[-4:-1] == ["config.json", "model.safetensors", "more"]
    again = home.completes(home.config(f"cat {at}/config.json", weights=[weights(home)]))
    assert "more" not in home.log(again)
    home.run("push", config, "--writable", "/elsewhere", code=2)


def test_scratch_is_the_jobs_own_and_full_for_it_alone(home: Home) -> None:
    config = home.config(
        'echo "$TMPDIR is $BT_SCRATCH_DIR"; python3 -c "import tempfile; print(tempfile.gettempdir())"',
        "head -c 100M /dev/zero > $TMPDIR/large; df --output=size -B1M $TMPDIR | tail -n1; exit 7",
    )
    job = home.push(config, "--tail", code=10)
    log = home.log(job)
    assert "/mnt/bt-scratch is /mnt/bt-scratch" in log
    assert "/mnt/bt-scratch" in log
    assert any("No space left on device" in line for line in log)
    assert home.job(job).exit_code == 7
    assert not list(home.directory(job).path.glob("scratch*"))


def test_every_place_and_variable_of_the_reference(home: Home) -> None:
    base = str(home.node.place / "made" / "for" / "this")
    runtime = f"""
        checkpointing_config=d.CheckpointingConfig(enabled=True),
        cache_config=d.CacheConfig(enabled=True, mount_base_path={base!r}),
    """
    config = home.config(
        "env | grep ^BT_ | sort",
        "for d in $BT_PROJECT_CACHE_DIR $BT_TEAM_CACHE_DIR $BT_CHECKPOINT_DIR $BT_WORKING_DIR $BT_SCRATCH_DIR; "
        "do touch $d/written || exit 1; done",
        name="named", team="red", runtime=runtime,
    )  # fmt: skip
    job = home.completes(config, "--job-name", "first")
    found = dict(line.split("=", 1) for line in home.log(job) if line.startswith("BT_"))
    assert found == {
        "BT_TRAINING_JOB_ID": job,
        "BT_TRAINING_PROJECT_ID": home.job(job).project_id,
        "BT_TRAINING_JOB_NAME": "first",
        "BT_TRAINING_PROJECT_NAME": "named",
        "BT_NUM_GPUS": "0",
        "BT_RETRY_COUNT": "0",
        "BT_WORKING_DIR": "/b10/workspace",
        "BT_SCRATCH_DIR": "/mnt/bt-scratch",
        "BT_CHECKPOINT_DIR": "/mnt/ckpts",
        "BT_PROJECT_CACHE_DIR": f"{base}/user_artifacts",
        "BT_TEAM_CACHE_DIR": f"{base}/team_artifacts",
        "BT_RW_CACHE_DIR": base,
    }
    assert not (home.node.place / "made").exists()
    again = home.config(
        "ls $BT_PROJECT_CACHE_DIR $BT_TEAM_CACHE_DIR", name="named", team="red", runtime=runtime
    )
    assert home.log(home.completes(again)).count("written") == 2


def test_gpus_that_are_not_here_are_refused_before_anything_is_fetched(home: Home, hub: HubServer) -> None:
    hub.reset()
    config = home.config("echo $BT_NUM_GPUS", accelerator="'H100:2'", weights=[weights(home)])
    done = home.run("push", config, code=2)
    assert "2 × H100" in done.error
    assert "--no-gpu-check" in done.error
    assert not hub.requests
    home.completes(config, "--no-gpu-check")
    home.completes(config, "--accelerator", "none")


def test_gpus_are_shared_out(home: Home) -> None:
    home.configure(gpus=2, slots=2)
    config = home.config("echo sees $CUDA_VISIBLE_DEVICES of $BT_NUM_GPUS", accelerator="'H100:2'")
    first = home.push(config, "--entrypoint", "echo sees $CUDA_VISIBLE_DEVICES of $BT_NUM_GPUS; sleep 600")
    home.says(first, "sees 0,1 of 2")
    second = home.push(config)
    home.says(second, "waits for a slot")
    home.run("stop", first)
    home.reaches(second, State.COMPLETED)
    assert "sees 0,1 of 2" in home.log(second)


def test_the_queue_goes_by_priority_then_age(home: Home) -> None:
    home.configure(slots=1)
    blocker = home.push(home.config("sleep 600"))
    home.reaches(blocker, State.RUNNING)
    order = home.node.place / "order"
    config = home.config(f"echo $BT_TRAINING_JOB_NAME >> {order}")
    pushed = {
        name: home.push(config, "--job-name", name, "--priority", priority)
        for name, priority in (("old", 0), ("young", 0), ("raised", -5), ("urgent", 3))
    }
    for job in pushed.values():
        home.says(job, "waits for a slot")
    # The one far back needs no process that waits: its turn is not among the next.
    until(lambda: len(home.processes("trainer.engine.supervisor")) == 4, "the last one's supervisor to end")
    home.run("update", pushed["raised"], "--priority", "9")
    home.run("stop", blocker)
    for job in pushed.values():
        home.reaches(job, State.COMPLETED)
    assert order.read_text().split() == ["raised", "urgent", "old", "young"]
    assert "DEPLOYING" not in home.run("update", pushed["old"], "--priority", "1", code=2).out


def test_recreate_and_download_have_the_files_that_were_pushed(home: Home) -> None:
    config = home.config("cat data.txt; echo retry $BT_RETRY_COUNT", files={"data.txt": "first\n"})
    job = home.completes(config)
    (config.parent / "data.txt").write_text("second\n")
    again = home.push_again(job)
    assert home.log(again)[-3:-1] == ["first", "retry 1"]
    done = home.run("download", job, "--target-directory", home.node.place / "got")
    (got,) = (home.node.place / "got").iterdir()
    assert str(got) in done.out
    assert (got / "data.txt").read_text() == "first\n"
    home.run("download", job, "--target-directory", home.node.place / "got", code=2)
    home.run("download", job, "--target-directory", home.node.place / "tar", "--no-unzip")
    assert [path.suffix for path in (home.node.place / "tar").iterdir()] == [".tar"]


def test_what_a_running_job_uses_is_shown(home: Home) -> None:
    config = home.config("head -c 1M /dev/zero > $TMPDIR/x; echo up; while :; do :; done")
    job = home.push(config)
    home.says(job, "up")

    def busy() -> dict[str, object]:
        rows = home.run("metrics", job, "-o", "json").json
        found = {row["metric"]: row["value"] for row in rows}
        return found if found["cpu_cores"] > 0 else {}

    found = until(busy, "the job to be busy", WAIT_S)
    assert found["processes"] == 1
    assert found["memory_bytes"] > 0
    assert found["scratch_used_bytes"] >= 1 << 20
    home.run("stop", job)
    home.run("metrics", job, code=2)


def test_jobs_are_listed_for_people_and_programs(home: Home) -> None:
    assert "no jobs" in home.run("view").out
    job = home.completes(home.config("true", name="seen"))
    assert job in home.run("view").out
    (row,) = json.loads(home.run("view", "--project", "seen", "-o", "json").out)
    assert set(row) == {
        "job_id", "project_id", "project", "name", "state", "priority", "created", "seconds", "checkpoints", "error",
    }  # fmt: skip
    head, line = home.run("view", "-o", "csv").out.splitlines()
    assert head.startswith("job_id,project_id,project")
    assert line.startswith(job)
    home.run("view", "nosuchjob", code=2)
    home.run("view", "--project", "nosuch", code=2)
    home.run("stop", job, code=2)


def test_torchrun_standalone_just_works(home: Home) -> None:
    script = (
        "import os, torch.distributed as d\n"
        "d.init_process_group('gloo')\n"
        # At once: torchrun has them print unbuffered, and both print into one pipe.
        "os.write(1, f'rank {d.get_rank()} of {d.get_world_size()}\\n'.encode())\n"
        "d.barrier()\n"
        "d.destroy_process_group()\n"
    )
    job = home.completes(
        home.config("torchrun --standalone --nproc-per-node=2 train.py", files={"train.py": script})
    )
    assert {"rank 0 of 2", "rank 1 of 2"} <= set(home.log(job)), home.all_about(job)


def test_python_pushes_waits_and_reads(home: Home) -> None:
    code = """
import os, sys
import trainer
from trainer.definitions import Image, Runtime, TrainingJob, TrainingProject

job = trainer.push(sys.argv[1])
done = job.wait(60)
assert (str(done.state), done.exit_code) == ("COMPLETED", 0), done
assert any(line.endswith("by path") for line in job.logs())
assert [phase.name for phase in job.phases][0] == "pending"
own = TrainingProject(name="made", job=TrainingJob(
    image=Image(base_image="x"), runtime=Runtime(start_commands=["sleep 600"])))
job = trainer.push(own, directory=os.path.dirname(sys.argv[1]))
assert str(job.stop().state) == "STOPPED"
print("pushed")
"""
    config = home.config("echo by path")
    command = home.node.start_program(
        sys.executable, "-c", code, config, how={"cwd": ROOT}, **home.environment
    )
    done = command.wait(0, WAIT_S)
    assert done.out == "pushed\n"
