"""A whole job, its checkpoints in a bucket: the store fails while it runs and while it ends, and nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.servers.faults import Fault
from tests.commands.node import until
from tests.credentials.servers import GoogleServer
from tests.trainer.home import WAIT_S, Home
from tests.trainer.stores import Bucket, GcsBucket, service_account
from tests.trainer.test_keeping import CHECKPOINTS, loading
from trainer.jobs.states import State

SAVE = "mkdir -p $BT_CHECKPOINT_DIR/{0} && head -c 300000 /dev/urandom > $BT_CHECKPOINT_DIR/{0}/model"
GO_ON = "until [ -e {0} ]; do sleep 0.05; done"


def with_bucket(home: Home, bucket: Bucket) -> str:
    config = bucket.config()
    home.configure(checkpoints=config.url)
    home.environment |= config.environment
    return config.url


def test_the_end_of_a_job_waits_for_a_bucket_that_is_away_and_another_job_loads_from_it(
    home: Home, bucket: Bucket
) -> None:
    with_bucket(home, bucket)
    go_on: Path = home.node.place / "go-on"
    try:
        job = home.push(
            home.config(SAVE.format("a"), GO_ON.format(go_on), SAVE.format("b"), runtime=CHECKPOINTS)
        )
        until(lambda: [each["state"] for each in home.checkpoints(job)] == ["COMPLETED"], "the first", WAIT_S)
        bucket.faults.add(Fault(method="PUT", status=503, times=None))
        go_on.touch()
        until(lambda: "syncing" in home.phases(job), "the job's own end", WAIT_S)
        home.says(job, "answered 503")
        assert home.job(job).state is State.RUNNING, "not over while something is missing"
        bucket.is_back()
        assert home.reaches(job, State.COMPLETED).sync == "COMPLETED"
    finally:
        bucket.is_back()
    assert [(each["checkpoint"], each["state"]) for each in home.checkpoints(job)] == [
        ("a", "COMPLETED"),
        ("b", "COMPLETED"),
    ]
    log = "\n".join(home.log(job))
    assert "uploads to s3://models/" in log
    assert "all 2 file(s), 600,000 bytes, are at s3://models/" in log
    second = home.completes(
        home.config(
            "stat -c %s $BT_LOAD_CHECKPOINT_DIR/rank-0/b/model",
            runtime=loading(home, f"d.BasetenCheckpoint.from_latest_checkpoint(job_id={job!r})"),
        )
    )
    assert home.log(second)[-2] == "300000"


@pytest.fixture
def google() -> Iterator[GoogleServer]:
    with GoogleServer() as server:
        yield server


def test_checkpoints_in_google_cloud_storage_go_up_come_back_and_are_loaded(
    home: Home, gcs: GcsBucket, google: GoogleServer
) -> None:
    (home.node.place / "secrets").mkdir(mode=0o700)
    home.node.configure(secrets={"directory": str(home.node.place / "secrets")})
    (home.node.place / "secrets" / "account").write_text(service_account(f"{google.url}/token"))
    url = gcs.config().url
    home.configure(checkpoints={"url": url, "auth_secret_name": "account"})
    home.environment |= gcs.environment
    save = "mkdir $BT_CHECKPOINT_DIR/big && head -c 20M /dev/urandom > $BT_CHECKPOINT_DIR/big/model"
    job = home.push(home.config(SAVE.format("a"), save, "echo up; sleep 600", runtime=CHECKPOINTS))
    home.says(job, "up")
    until(lambda: {each["state"] for each in home.checkpoints(job)} == {"COMPLETED"}, "the sync", WAIT_S)
    home.run("stop", job)
    assert home.job(job).sync == "COMPLETED"
    assert [(each["checkpoint"], each["size_bytes"]) for each in home.checkpoints(job)] == [
        ("a", 300_000),
        ("big", 20 << 20),
    ]
    home.run("checkpoints", "download", job, "--target-directory", home.node.place / "got")
    got = home.node.place / "got" / job / "rank-0" / "big" / "model"
    assert got.stat().st_size == 20 << 20
    wanted = f"d.BasetenCheckpoint.from_latest_checkpoint(job_id={job!r})"
    second = home.completes(
        home.config(f"cmp {got} $BT_LOAD_CHECKPOINT_DIR/rank-0/big/model", runtime=loading(home, wanted))
    )
    assert home.phases(second)["filling"].total_bytes == 20 << 20
    home.run("project", "delete", "project", "--yes", "--checkpoints")
    assert gcs.site.keys("models", url.removeprefix("gs://models/")) == []
    assert google.asked
