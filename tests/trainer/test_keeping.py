"""What outlives a job: checkpoints in object storage, the training cache; until the project is deleted."""

import json
import subprocess
from pathlib import Path

from tests.commands.node import until
from tests.trainer.home import WAIT_S, Home
from trainer.jobs.states import State

CHECKPOINTS = "checkpointing_config=d.CheckpointingConfig(enabled=True),"
_SAVE = "mkdir -p $BT_CHECKPOINT_DIR/step-{0} && echo model {0} > $BT_CHECKPOINT_DIR/step-{0}/model.txt"


def loading(home: Home, wanted: str) -> str:
    """The runtime of a job that loads checkpoints to a place of this test's own."""
    folder = str(home.node.place / "loaded")
    return (
        "load_checkpoint_config=d.LoadCheckpointConfig("
        f"enabled=True, download_folder={folder!r}, checkpoints=[{wanted}]),"
    )


def test_checkpoints_are_kept_listed_downloaded_and_loaded_by_another_job(home: Home) -> None:
    first = home.completes(home.config(_SAVE.format(1), "sleep 0.1", _SAVE.format(2), runtime=CHECKPOINTS))
    assert home.job(first).sync == "COMPLETED"
    assert not home.directory(first).checkpoints.exists()
    listed = home.checkpoints(first)
    assert [(each["checkpoint"], each["state"], each["files"]) for each in listed] == [
        ("step-1", "COMPLETED", 1), ("step-2", "COMPLETED", 1),
    ]  # fmt: skip
    got = home.node.place / "got"
    home.run("checkpoints", "download", first, "--target-directory", got, "--name", "step-1")
    assert (got / first / "rank-0" / "step-1" / "model.txt").read_text() == "model 1\n"

    latest = home.config(
        "echo $BT_LOAD_CHECKPOINT_DIR; cat $BT_LOAD_CHECKPOINT_DIR/rank-0/*/model.txt",
        runtime=loading(home, "d.BasetenCheckpoint.from_latest_checkpoint(project_name='project')"),
    )
    second = home.completes(latest)
    assert home.log(second)[-3:-1] == [str(home.node.place / "loaded"), "model 2"]
    assert home.phases(second)["filling"].total_bytes == len("model 2\n")  # by way of the node cache
    named = f"d.BasetenCheckpoint.from_named_checkpoint('step-1', {first!r})"
    third = home.completes(
        home.config("cat $BT_LOAD_CHECKPOINT_DIR/rank-0/step-1/model.txt", runtime=loading(home, named))
    )
    assert home.log(third)[-2] == "model 1"


def test_a_checkpoint_that_is_not_there_is_named_before_the_job_has_a_slot(home: Home) -> None:
    missing = "d.BasetenCheckpoint.from_named_checkpoint('step-9', 'nosuchjob')"
    job = home.push(home.config("true", runtime=loading(home, missing)), "--tail", code=10)
    found = home.job(job)
    assert found.state is State.DEPLOY_FAILED
    assert "nosuchjob" in found.error
    first = home.config("true", name="fresh", runtime=loading(home, "*d.LoadCheckpointConfig().checkpoints"))
    assert "no earlier job" in home.job(home.push(first, "--tail", code=10)).error


def test_checkpoints_go_up_while_the_job_runs_and_survive_its_stop(home: Home) -> None:
    job = home.push(home.config(_SAVE.format(1), "echo up; sleep 600", runtime=CHECKPOINTS))
    until(lambda: [each["state"] for each in home.checkpoints(job)] == ["COMPLETED"], "the sync", WAIT_S)
    assert home.job(job).state is State.RUNNING
    home.run("stop", job)
    assert home.job(job).state is State.STOPPED
    assert [each["checkpoint"] for each in home.checkpoints(job)] == ["step-1"]


def test_a_job_whose_store_can_not_be_written_says_what_is_missing_and_keeps_it(home: Home) -> None:
    (home.node.place / "not-a-directory").touch()
    home.configure(checkpoints=f"{home.node.place}/not-a-directory/store")
    job = home.push(home.config(_SAVE.format(1), runtime=CHECKPOINTS))
    found = home.reaches(job, State.COMPLETED)
    assert found.sync == "SYNCING"
    assert "not in object storage" in found.error
    kept = home.directory(job).checkpoints / "step-1" / "model.txt"
    assert kept.read_text() == "model 1\n"
    assert str(kept.parent.parent) in found.error


def test_the_slot_is_free_while_checkpoints_wait_for_a_store_that_is_full(home: Home) -> None:
    store = home.node.place / "store"
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64K", "store", store], check=True, timeout=60)
    try:
        home.configure(slots=1, checkpoints=str(store))
        save = home.config("head -c 1M /dev/urandom > $BT_CHECKPOINT_DIR/one", runtime=CHECKPOINTS)
        job = home.push(save)
        until(lambda: "syncing" in home.phases(job), "the sync", WAIT_S)
        home.completes(home.config("true"))
        assert home.job(job).state is State.RUNNING
        subprocess.run(["mount", "-o", "remount,size=64M", store], check=True, timeout=60)
        home.reaches(job, State.COMPLETED)
        assert [each["state"] for each in home.checkpoints(job)] == ["COMPLETED"]
    finally:
        home.end()
        subprocess.run(["umount", "-l", store], check=True, timeout=60)


def test_the_training_cache_is_kept_shown_and_goes_with_its_project(home: Home) -> None:
    runtime = f"cache_config=d.CacheConfig(enabled=True, mount_base_path={str(home.node.place / 'base')!r}),"
    config = home.config("mkdir $BT_RW_CACHE_DIR/user_artifacts/d; head -c 5000 /dev/zero > $BT_PROJECT_CACHE_DIR/d/f",
                         runtime=runtime)  # fmt: skip
    job = home.completes(config)
    rows = json.loads(home.run("cache", "summarize", "project", "-o", "json").out)
    assert [(row["filepath"], row["type"]) for row in rows] == [("d", "directory"), ("d/f", "file")]
    rows = json.loads(
        home.run("cache", "summarize", "project", "--sort", "type", "--order", "desc", "-o", "json").out
    )
    assert [row["filepath"] for row in rows] == ["d/f", "d"]
    assert "of 931.3 GiB" in home.run("cache", "summarize", "project").out
    running = home.push(home.config("sleep 600"))
    home.run("project", "delete", "project", "--yes", code=2)
    home.run("stop", running)
    assert "project project is deleted" in home.run("project", "delete", "project", "--yes").out
    assert not home.directory(job).path.exists()
    assert not list(Path(home.path / "cache").iterdir())
    home.run("cache", "summarize", "project", code=2)
    home.run("view", job, code=2)


def test_a_job_whose_training_cache_is_full_does_not_start(home: Home) -> None:
    runtime = f"cache_config=d.CacheConfig(enabled=True, mount_base_path={str(home.node.place / 'base')!r}),"
    home.completes(home.config("head -c 100000 /dev/zero > $BT_PROJECT_CACHE_DIR/large", runtime=runtime))
    home.configure(cache="50KB")
    job = home.push(home.config("echo ran", runtime=runtime), "--tail", code=10)
    assert home.job(job).state is State.DEPLOY_FAILED
    assert "50,000" in home.job(job).error
    assert "ran" not in home.log(job)


def test_a_full_disk_while_checkpointing_is_told_and_what_was_up_stays(home: Home) -> None:
    """The disk of the whole home is full: not even the job's end can be written, until its scratch has gone."""
    home.configure(checkpoint_wait=1)
    home.path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96M", "home", home.path], check=True, timeout=60)
    try:
        up = home.node.place / "up"
        config = home.config(
            _SAVE.format(1),
            f"while [ ! -e {up} ]; do sleep 0.05; done; mkdir $BT_CHECKPOINT_DIR/step-2",
            "cat /dev/zero > $BT_CHECKPOINT_DIR/step-2/model.txt",
            runtime=CHECKPOINTS,
        )
        job = home.push(config)
        until(lambda: [each["state"] for each in home.checkpoints(job)] == ["COMPLETED"], "the sync", WAIT_S)
        up.touch()
        found = home.reaches(job, State.FAILED)
        assert "not in object storage" in found.error
        assert "step-2/model.txt" in found.error
        assert found.exit_code == 1
        assert ("step-1", "COMPLETED") in [
            (each["checkpoint"], each["state"]) for each in home.checkpoints(job)
        ]
        assert (home.directory(job).checkpoints / "step-2" / "model.txt").exists()
        home.end()
    finally:
        subprocess.run(["umount", "-l", home.path], check=True, timeout=60)
