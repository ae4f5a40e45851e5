"""What a job could not bring into object storage goes up later, by a command, and is kept until then."""

import shutil
import signal
from pathlib import Path
from typing import Any

from benchmarks.servers.faults import Fault
from tests.commands.node import until
from tests.trainer.home import WAIT_S, Home
from tests.trainer.stores import Bucket
from tests.trainer.test_keeping import CHECKPOINTS, loading
from tests.trainer.test_sync_of_jobs import SAVE, with_bucket
from trainer.jobs.states import State

REFUSED = Fault(method="PUT", match="/b/", status=403, body="<Code>AccessDenied</Code>", times=None)


def left_b(home: Home, bucket: Bucket) -> str:
    """Run a job of whose two checkpoints the bucket takes one; return its id."""
    with_bucket(home, bucket)
    bucket.faults.add(REFUSED)
    job = home.push(home.config(SAVE.format("a"), SAVE.format("b"), runtime=CHECKPOINTS))
    assert home.reaches(job, State.COMPLETED).sync == "SYNCING"
    bucket.forget()
    return job


def unwritable(home: Home) -> Path:
    """Have a file stand where the directory of checkpoints would be made; return it."""
    place: Path = home.node.place / "not-a-directory"
    place.touch()
    home.configure(checkpoints=f"{place}/store")
    return place


def states(home: Home, job: str) -> dict[str, str]:
    return {each["checkpoint"]: each["state"] for each in home.checkpoints(job)}


def test_what_was_refused_goes_up_later_and_is_listed_downloaded_and_loaded(
    home: Home, bucket: Bucket
) -> None:
    try:
        job = left_b(home, bucket)
        command = f"`trainer checkpoints upload {job}`"
        assert command in home.job(job).error
        assert command in home.log(job)[-1]
        assert command in home.run("view", job).out
        assert states(home, job) == {"a": "COMPLETED", "b": "SYNCING"}
        model = home.directory(job).checkpoints / "b" / "model"
        content = model.read_bytes()

        refused = home.run("checkpoints", "upload", job, "-o", "json", code=5)
        assert refused.json[0]["state"] == "SYNCING"
        assert refused.json[0]["missing"] == 1
        assert "b/model" in refused.error
        assert "AccessDenied" in refused.error
        assert "trying again" in refused.err
        assert model.read_bytes() == content
        assert home.job(job).sync == "SYNCING"
        bucket.is_back()
        bucket.forget()

        done = home.run("checkpoints", "upload", job, "-o", "json")
        (row,) = done.json
        assert row == {
            "job_id": job, "state": "COMPLETED", "files": 2, "size_bytes": 600_000, "uploaded_bytes": 300_000,
            "missing": 0,
        }  # fmt: skip
        assert bucket.puts() == ["model"], "only what was missing"
    finally:
        bucket.is_back()
    assert not home.directory(job).checkpoints.exists()
    assert home.job(job).sync == "COMPLETED"
    assert home.job(job).error.endswith("its checkpoints were uploaded later")
    assert "all 2 file(s)" in home.log(job)[-1]
    assert states(home, job) == {"a": "COMPLETED", "b": "COMPLETED"}
    home.run("checkpoints", "download", job, "--target-directory", home.node.place / "got")
    assert (home.node.place / "got" / job / "rank-0" / "b" / "model").read_bytes() == content
    wanted = f"d.BasetenCheckpoint.from_latest_checkpoint(job_id={job!r})"
    second = home.completes(
        home.config("stat -c %s $BT_LOAD_CHECKPOINT_DIR/rank-0/b/model", runtime=loading(home, wanted))
    )
    assert home.log(second)[-2] == "300000"
    assert "all of them are up" in home.run("checkpoints", "upload", job).out


def test_a_job_that_has_not_ended_or_has_saved_nothing_is_not_uploaded_for(home: Home) -> None:
    job = home.push(home.config("echo up; sleep 600", runtime=CHECKPOINTS))
    home.says(job, "up")
    assert "is RUNNING: what it saves goes up" in home.run("checkpoints", "upload", job, code=2).error
    home.run("stop", job)
    plain = home.completes(home.config("true"))
    assert home.run("checkpoints", "upload").out == (
        f"nothing to upload: job {plain} has left no checkpoint here, it has saved none\n"
    )
    assert home.run("checkpoints", "upload", "-o", "json").json[0]["state"] is None
    home.run("checkpoints", "upload", "nosuchjob", code=2)


def test_one_upload_at_a_time_and_one_that_is_interrupted_goes_on(home: Home, bucket: Bucket) -> None:
    try:
        job = left_b(home, bucket)
        bucket.is_back()
        slow = Fault(method="PUT", match="/b/", delay_s=WAIT_S, times=None)
        bucket.faults.add(slow)
        first = home.start("checkpoints", "upload", job)
        until(lambda: "on the way: b/model" in first.err, "the upload", WAIT_S)
        second = home.run("checkpoints", "upload", job, code=2)
        assert "another command is uploading its checkpoints" in second.error
        assert (
            "another command"
            in home.run("project", "delete", "project", "--yes", "--checkpoints", code=2).error
        )
        first.signal(signal.SIGINT)
        assert first.wait(130, 20).error == "trainer: interrupted; jobs go on"
        assert states(home, job) == {"a": "COMPLETED", "b": "SYNCING"}
        bucket.is_back()
        done = home.run("checkpoints", "upload", job)
    finally:
        bucket.is_back()
    assert done.out.startswith(f"job {job}: checkpoints: all 2 file(s), 600,000 bytes, are at s3://")
    assert set(states(home, job).values()) == {"COMPLETED"}


def test_an_upload_waits_for_a_bucket_that_is_away(home: Home, bucket: Bucket) -> None:
    try:
        job = left_b(home, bucket)
        bucket.is_back()
        bucket.faults.add(Fault(method="PUT", status=503, times=None))
        upload = home.start("checkpoints", "upload", job)
        until(lambda: "answered 503" in upload.err, "the failure to be said", WAIT_S)
        bucket.is_back()
        upload.wait(0, WAIT_S)
    finally:
        bucket.is_back()
    assert set(states(home, job).values()) == {"COMPLETED"}


def test_another_store_gets_all_that_is_here_whatever_the_first_one_had(home: Home, bucket: Bucket) -> None:
    try:
        job = left_b(home, bucket)
    finally:
        bucket.is_back()
    home.configure(checkpoints=str(home.node.place / "store"))
    (row,) = home.run("checkpoints", "upload", job, "-o", "json").json
    assert (row["files"], row["uploaded_bytes"]) == (2, 600_000)
    stored = sorted((home.node.place / "store" / "files" / job).rglob("model"))
    assert [path.parent.name for path in stored] == ["a", "b"]
    assert states(home, job) == {"a": "COMPLETED", "b": "COMPLETED"}


def test_what_is_gone_is_said_and_a_project_is_not_deleted_with_what_is_only_here(home: Home) -> None:
    place = unwritable(home)
    save = home.config(SAVE.format("a"), runtime=CHECKPOINTS)
    first, second = (home.push(save) for _ in range(2))
    for job in (first, second):
        assert home.reaches(job, State.COMPLETED).sync == "SYNCING"
    refused: Any = home.run("project", "delete", "project", "--yes", code=2)
    assert f"checkpoints of {first}, {second} are not in object storage yet" in refused.error
    kept = home.directory(first).checkpoints
    assert (kept / "a" / "model").exists()
    shutil.rmtree(kept)
    assert f"{kept}, where the rest" in home.run("checkpoints", "upload", first, code=2).error
    place.unlink()
    home.run("checkpoints", "upload", second)
    home.run("project", "delete", "project", "--yes")
