"""Checkpoints: only what is finished goes up, everything does in the end, and what is up comes back."""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers.faults import PASSING, Fault
from tests.commands.node import Node, until
from tests.storage.disks import Disks, fill_up
from tests.trainer.confined import ROOT, WAIT_S, needs_root
from tests.trainer.stores import MIB, SECRET_KEY, Bucket, opened
from trainer.errors import ConfigError
from trainer.storage import checkpoint_sync, checkpoints
from trainer.storage.checkpoint_directory import DirectoryStore
from trainer.storage.checkpoint_files import has_leases
from trainer.storage.checkpoint_records import FileRecord, SyncRecord, encoded, read_local, record_key
from trainer.storage.checkpoint_store import CheckpointStore, Stop, StoreConfig, open_checkpoint_store
from trainer.storage.checkpoint_sync import SyncConfig, SyncProgress, open_checkpoint_sync
from trainer.storage.checkpoints import (
    Checkpoint,
    Wanted,
    delete_checkpoints,
    download_checkpoints,
    list_checkpoints,
    load_sources,
)
from trainer.storage.errors import DamagedError, NoCheckpointError, StoreAwayError, StoreError

JOB = "job-1"
SOON = SyncConfig(quiet_s=0.05, every_s=0.02, pause_s=0.02, pause_max_s=0.2)


class Place:
    """A job's directory of checkpoints, the store they go to, and what was said."""

    def __init__(self, directory: Path, store: CheckpointStore) -> None:
        self.top, self.store = directory, store
        self.directory = directory / "ckpts"
        self.record = directory / "records" / f"{JOB}.json"
        self.said: list[str] = []
        self.directory.mkdir(parents=True)

    def write(self, **files: bytes | str) -> None:
        for name, content in files.items():
            path = self.directory / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def sync(self, config: SyncConfig = SOON, job: str = JOB, **how: Any) -> Any:
        return open_checkpoint_sync(
            self.directory, self.store, job, record=self.record, config=config, say=self.said.append, **how
        )

    def up(self, job: str = JOB) -> dict[str, bytes]:
        """What is in the store, record or not."""
        found = {}
        for number, (key, size) in enumerate(self.store.list(f"files/{job}/rank-0/")):
            back = self.top / f"back-{number}"
            self.store.get_file(key, back, size)
            found[key.removeprefix(f"files/{job}/rank-0/")] = back.read_bytes()
            back.unlink()
        return found

    def listed(self) -> list[tuple[str, str]]:
        return [(each.name, each.state) for each in list_checkpoints(self.store, JOB)]

    def finish(self, timeout_s: float = WAIT_S) -> Any:
        with self.sync() as sync:
            return sync.finish(timeout_s)


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> Iterator[Place]:
    yield Place(tmp_path, opened(request.param, tmp_path / "store", bucket))
    bucket.is_back()


@pytest.fixture
def local(tmp_path: Path) -> Place:
    return Place(tmp_path, open_checkpoint_store(StoreConfig(url=str(tmp_path / "store"))))


@pytest.fixture
def remote(tmp_path: Path, bucket: Bucket) -> Iterator[Place]:
    yield Place(tmp_path, opened("s3", tmp_path, bucket))
    bucket.is_back()
    bucket.forget()


# ---- while the job runs ------------------------------------------------------------------------


def test_only_finished_files_go_up_while_the_job_runs(place: Place) -> None:
    place.write(**{"checkpoint-1__model": b"one", "checkpoint-1__empty": b""})
    with place.sync() as sync, (place.directory / "checkpoint-1" / "half").open("wb") as file:
        file.write(b"hal")
        file.flush()
        until(lambda: len(place.up()) == 2, "what is finished to be up")
        until(lambda: place.listed() == [("checkpoint-1", "SYNCING")], "the record to say so")
        # What was quiet for less long is up, and this is still open for writing.
        place.write(**{"checkpoint-2__model": b"two"})
        until(lambda: "checkpoint-2/model" in place.up(), "the second checkpoint")
        assert "checkpoint-1/half" not in place.up()
        file.write(b"f")
        file.close()
        until(lambda: {"COMPLETED"} == {each for _, each in place.listed()}, "the rest")
        assert place.up() == {
            "checkpoint-1/model": b"one",
            "checkpoint-1/empty": b"",
            "checkpoint-1/half": b"half",
            "checkpoint-2/model": b"two",
        }
        report = sync.finish(WAIT_S)
    assert (report.state, report.files, report.missing) == ("COMPLETED", 4, ())
    assert report.uploaded_bytes == 10
    assert place.said == []


def test_what_is_replaced_goes_up_again_and_what_is_deleted_stays(place: Place) -> None:
    place.write(**{"latest": "checkpoint-1", "checkpoint-1__model": b"one"})
    with place.sync() as sync:
        until(lambda: len(place.up()) == 2, "the first checkpoint")
        place.write(**{"checkpoint-2__model": b"two"})
        (place.directory / "latest.tmp").write_text("checkpoint-2")
        (place.directory / "latest.tmp").rename(place.directory / "latest")
        (place.directory / "checkpoint-1" / "model").unlink()
        until(lambda: place.up().get("latest") == b"checkpoint-2", "the second")
        report = sync.finish(WAIT_S)
    assert report.state == "COMPLETED"
    assert {name: content for name, content in place.up().items() if name != "latest.tmp"} == {
        "latest": b"checkpoint-2",
        "checkpoint-1/model": b"one",
        "checkpoint-2/model": b"two",
    }
    assert dict(place.listed())["checkpoint-2"] == "COMPLETED"


def test_where_there_are_no_leases_a_quiet_file_is_finished(
    local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_leases(local.directory)
    assert not has_leases(Path("/proc"))
    # As NFS does it: it never has one to give.
    monkeypatch.setattr(checkpoint_sync, "is_being_written", lambda path: True)
    monkeypatch.setattr(checkpoint_sync, "has_leases", lambda directory: has_leases(Path("/proc")))
    local.write(a__model=b"a")
    with local.sync():
        until(lambda: local.up() == {"a/model": b"a"}, "the file")


def test_a_hidden_draft_is_no_checkpoint_until_it_has_its_name(place: Place) -> None:
    place.write(
        **{".checkpoint-2__model": b"two", ".checkpoint-2__.metadata": b"m", "checkpoint-1__model": b"one"}
    )
    with place.sync() as sync:
        until(lambda: place.listed() == [("checkpoint-1", "COMPLETED")], "the first checkpoint")
        (place.directory / ".checkpoint-2").rename(place.directory / "checkpoint-2")
        until(lambda: dict(place.listed()).get("checkpoint-2") == "COMPLETED", "the second")
        place.write(**{".checkpoint-3__model": b"half"})
        assert sync.finish(WAIT_S).state == "COMPLETED"
    assert sorted(place.up()) == ["checkpoint-1/model", "checkpoint-2/.metadata", "checkpoint-2/model"]


def test_links_and_devices_are_no_checkpoints(local: Place) -> None:
    local.write(**{"checkpoint-1__model": b"one"})
    (local.directory / "checkpoint-1" / "secret").symlink_to("/etc/passwd")
    (local.directory / "elsewhere").symlink_to("/etc")
    os.mkfifo(local.directory / "pipe")
    assert local.finish().state == "COMPLETED"
    assert local.up() == {"checkpoint-1/model": b"one"}


def test_a_name_that_is_no_text_is_said_and_holds_nothing_up(local: Place) -> None:
    local.write(**{"checkpoint-1__model": b"one"})
    Path(os.fsdecode(os.fsencode(local.directory) + b"/checkpoint-1/\xff")).write_bytes(b"x")
    report = local.finish()
    assert report.state == "SYNCING"
    assert report.missing == (("checkpoint-1/\\xff", "its name is no UTF-8; rename it"),)
    assert local.up() == {"checkpoint-1/model": b"one"}


def test_of_two_versions_the_newer_one_arrives_last(tmp_path: Path) -> None:
    """The older one is on its way, and slow, when the file is replaced."""
    under_way, go_on = threading.Event(), threading.Event()

    class Slow(DirectoryStore):
        def put_file(self, key: str, path: Path, stopped: Stop) -> str:
            old = path.read_bytes() == b"old"
            copy = tmp_path / secrets.token_hex(8)
            copy.write_bytes(path.read_bytes())
            if old:
                under_way.set()
                assert go_on.wait(WAIT_S)
            return super().put_file(key, copy, stopped)

    place = Place(tmp_path, Slow(tmp_path / "store"))
    place.write(latest=b"old")
    with place.sync() as sync:
        assert under_way.wait(WAIT_S)
        (place.directory / ".latest").write_bytes(b"newer")
        (place.directory / ".latest").rename(place.directory / "latest")
        # What is newer than the replaced file has been seen and uploaded: so has that been.
        place.write(other=b"other")
        until(lambda: "other" in place.up(), "a file that came later")
        go_on.set()
        assert sync.finish(WAIT_S).state == "COMPLETED"
    assert place.up() == {"latest": b"newer", "other": b"other"}
    assert set(place.listed()) == {("latest", "COMPLETED"), ("other", "COMPLETED")}


def test_a_job_without_checkpoints_has_none(local: Place) -> None:
    report = local.finish()
    assert (report.state, report.files, local.listed()) == ("COMPLETED", 0, [])
    local.directory.rmdir()  # nor one that took the directory away
    assert local.finish().state == "COMPLETED"
    assert list_checkpoints(local.store, "another") == []
    with pytest.raises(ConfigError, match="no job's id"):
        list_checkpoints(local.store, "../other")


# ---- a store that fails ------------------------------------------------------------------------

MANY = {
    f"checkpoint-{number}__{name}": os.urandom(2000) for number in range(4) for name in ("model", "state")
}


def below(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name.replace("__", "/"): content for name, content in files.items()}


def test_a_store_that_fails_now_and_then_gets_everything_in_the_end(remote: Place, bucket: Bucket) -> None:
    bucket.faults.random(7, 0.4, tuple(each for each in PASSING if each.truncate_at is None))
    with remote.sync() as sync:
        remote.write(**MANY)
        report = sync.finish(WAIT_S)
    bucket.is_back()
    assert report.state == "COMPLETED"
    assert remote.up() == below(MANY)
    assert {state for _, state in remote.listed()} == {"COMPLETED"}


def test_the_end_waits_for_a_store_that_is_away(remote: Place, bucket: Bucket) -> None:
    remote.write(**MANY)
    bucket.goes_away()
    reports: list[Any] = []
    with remote.sync() as sync:
        until(lambda: remote.said, "the failure to be said")
        ending = threading.Thread(target=lambda: reports.append(sync.finish(WAIT_S)), daemon=True)
        ending.start()
        failed = bucket.faults.hits
        until(lambda: bucket.faults.hits > failed + 20, "more tries")
        assert not reports
        bucket.is_back()
        ending.join(WAIT_S)
    assert [report.state for report in reports] == ["COMPLETED"]
    assert remote.up() == below(MANY)
    assert remote.said[0].endswith("; trying again until it succeeds")
    assert remote.said[-1] == f"checkpoints: uploads to {remote.store.name} go on"
    assert len(remote.said) < 2 * len(MANY), "not once for each failure"
    assert SECRET_KEY not in "".join(remote.said)


def test_what_could_not_go_up_is_said_plainly_and_goes_up_later(remote: Place, bucket: Bucket) -> None:
    remote.write(a__model=b"a")
    with remote.sync() as sync:
        until(lambda: remote.listed() == [("a", "COMPLETED")], "the first to be up")
        bucket.faults.add(Fault(method="PUT", match="/b/", status=503, times=None))
        remote.write(b__model=b"b")
        until(lambda: remote.said, "the failure to be said")
        report = sync.finish(0.2)
    assert report.state == "SYNCING"
    assert [path for path, _ in report.missing] == ["b/model"]
    assert "answered 503" in report.missing[0][1]
    assert report.said.startswith("checkpoints: 1 file(s) are NOT at s3://models/")
    assert f"They stay in {remote.directory}; 1 others are up" in report.said
    assert dict(remote.listed()) == {"a": "COMPLETED", "b": "SYNCING"}
    assert {each.name: each.state for each in list_checkpoints(remote.store, JOB, remote.record)} == {
        "a": "COMPLETED",
        "b": "SYNCING",
    }
    bucket.is_back()
    bucket.forget()
    assert remote.finish().state == "COMPLETED"
    assert bucket.puts() == ["model"], "only what was missing"
    assert remote.up() == {"a/model": b"a", "b/model": b"b"}


def test_a_refusal_that_lasts_does_not_hold_the_end_up(remote: Place, bucket: Bucket) -> None:
    bucket.faults.add(Fault(method="PUT", status=403, body="<Code>AccessDenied</Code>", times=None))
    remote.write(**MANY)
    report = remote.finish(timeout_s=10 * WAIT_S)
    assert report.state == "SYNCING"
    assert len(report.missing) == len(MANY)
    assert "refused the credentials (AccessDenied)" in report.said
    assert "and 3 more" in report.said
    assert SECRET_KEY not in report.said


def test_a_store_that_hangs_does_not_keep_the_job_from_ending(tmp_path: Path) -> None:
    hang = threading.Event()

    class Hanging:
        """The network edge: a call that returns when it likes."""

        name = source = "s3://models/hanging"

        def __getattr__(self, call: str) -> Callable[..., object]:
            return self._hang

        def _hang(self, *_: object) -> object:
            hang.wait()
            raise StoreAwayError("late")

    place = Place(tmp_path, Hanging())  # type: ignore[arg-type]
    place.write(a__model=b"a")
    place.record.parent.mkdir()
    place.record.write_bytes(encoded(SyncRecord(job_id=JOB)))
    try:
        with place.sync() as sync:
            report = sync.finish(0.3)
        assert report.state == "SYNCING"
        assert report.missing
        said = list(place.said)
    finally:
        hang.set()
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint"):
            thread.join(WAIT_S)
    assert place.said == said, "who comes back late says nothing: the log is closed by now"


def test_a_store_that_is_slow_is_waited_for_as_long_as_something_goes_up(tmp_path: Path) -> None:
    class Slow(DirectoryStore):
        def put_file(self, key: str, path: Path, stopped: Stop) -> str:
            time.sleep(0.2)
            return super().put_file(key, path, stopped)

    place = Place(tmp_path, Slow(tmp_path / "store"))
    place.write(**MANY)
    told: list[SyncProgress] = []
    with place.sync(replace(SOON, uploads=1)) as sync:
        report = sync.finish(1.0, lambda progress: told.append(progress) or True)  # type: ignore[func-returns-value]
    assert report.state == "COMPLETED"
    assert {each.files for each in told if each.counted} == {len(MANY)}
    assert [each.files_up for each in told] == sorted(each.files_up for each in told)
    assert [each.up_bytes for each in told] == [each.files_up * 2000 for each in told]


def test_whoever_waits_for_a_store_that_is_away_may_end_that(remote: Place, bucket: Bucket) -> None:
    remote.write(**MANY)
    bucket.goes_away()
    with remote.sync() as sync:
        report = sync.finish(10 * WAIT_S, goes_on=lambda progress: not remote.said)
    assert report.state == "SYNCING"
    assert len(report.missing) == len(MANY)


# ---- crashes and full disks --------------------------------------------------------------------

FOLLOW = """
import sys
from pathlib import Path
from tests.trainer.test_checkpoints import JOB, SOON
from trainer.storage.checkpoint_store import StoreConfig, open_checkpoint_store
from trainer.storage.checkpoint_sync import open_checkpoint_sync
directory, record, url, endpoint = sys.argv[1:5]
environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "x"}
store = open_checkpoint_store(StoreConfig(url=url, environment=environment))
with open_checkpoint_sync(Path(directory), store, JOB, record=Path(record), config=SOON):
    sys.stdin.read()
"""


@pytest.mark.parametrize("known", ["here", "in the store", "nowhere"])
def test_after_a_crash_only_what_is_missing_goes_up(remote: Place, bucket: Bucket, known: str) -> None:
    remote.write(**MANY)
    endpoint = bucket.environment["AWS_ENDPOINT_URL"]
    with subprocess.Popen(
        [sys.executable, "-c", FOLLOW, remote.directory, remote.record, remote.store.source, endpoint],
        cwd=ROOT,
        stdin=subprocess.PIPE,
    ) as process:
        until(
            lambda: len(remote.listed()) == 4 and {"COMPLETED"} == {each for _, each in remote.listed()},
            "all up",
        )
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT_S)
    if known != "here":
        remote.record.write_bytes(remote.record.read_bytes()[:100])  # torn
    if known == "nowhere":
        remote.store.delete("records/")
    remote.write(**{"checkpoint-9__model": b"nine"})
    bucket.forget()
    assert remote.finish().state == "COMPLETED"
    assert len(bucket.puts()) == (9 if known == "nowhere" else 1)
    assert remote.up() == below(MANY) | {"checkpoint-9/model": b"nine"}


@needs_root
def test_a_full_disk_loses_no_checkpoint_that_was_whole(bucket: Bucket, tmp_path: Path) -> None:
    """The job's checkpoints and the record are on the disk that is full; the store is elsewhere."""
    disks = Disks(tmp_path)
    try:
        disk = disks.tmpfs(4)
        place = Place(disk.at / "job", opened("s3", tmp_path, bucket))
        with place.sync() as sync:
            place.write(**{"checkpoint-1__model": bytes(MIB)})
            until(lambda: place.listed() == [("checkpoint-1", "COMPLETED")], "the first to be up")
            filler = fill_up(disk.at)
            with pytest.raises(OSError, match="No space left"):
                place.write(**{"checkpoint-2__model": bytes(MIB)})
            report = sync.finish(WAIT_S)
        # The half that the job left is up as it is: whether it is of use only the job can know.
        assert report.state == "COMPLETED"
        assert any("No space left on device" in line for line in place.said)
        filler.unlink()
        assert place.up()["checkpoint-1/model"] == bytes(MIB)
        assert ("checkpoint-1", "COMPLETED") in place.listed()
        assert [each.state for each in list_checkpoints(place.store, JOB, place.record)] == ["COMPLETED"] * 2
        assert place.finish().state == "COMPLETED"
    finally:
        bucket.is_back()
        disks.close()


# ---- what is up --------------------------------------------------------------------------------


def filled(place: Place, job: str = JOB, **files: bytes | str) -> None:
    """Let a job end with these checkpoints, each older than the next."""
    for number, (name, content) in enumerate(files.items()):
        place.write(**{name: content})
        os.utime(place.directory / name.replace("__", "/"), (1000 + number, 1000 + number))
    with place.sync(job=job) as sync:
        assert sync.finish(WAIT_S).state == "COMPLETED"
    place.record.unlink()
    for each in list(place.directory.iterdir()):
        subprocess.run(["rm", "-r", each], check=True, timeout=WAIT_S)


CHECKPOINTS = {
    "checkpoint-9__model": b"nine",
    "checkpoint-9__deep__state": b"9",
    "checkpoint-10__model": b"ten",
    "loose[1]*.pt": b"loose",
}


def test_list(place: Place) -> None:
    filled(place, **CHECKPOINTS)
    assert list_checkpoints(place.store, JOB) == [
        Checkpoint(
            job_id=JOB,
            name=name,
            rank=0,
            files=files,
            size_bytes=size,
            modified_s=modified_s,
            state="COMPLETED",
        )
        for name, files, size, modified_s in (
            ("checkpoint-9", 2, 5, 1001.0),
            ("checkpoint-10", 1, 3, 1002.0),
            ("loose[1]*.pt", 1, 5, 1003.0),
        )
    ]


def test_download_all_or_some_and_go_on(place: Place, tmp_path: Path) -> None:
    filled(place, **CHECKPOINTS)
    target = tmp_path / "target"
    found = download_checkpoints(place.store, JOB, target, ["checkpoint-9"])
    assert sorted(str(each.relative_to(target)) for each in found) == [
        "rank-0/checkpoint-9/deep/state",
        "rank-0/checkpoint-9/model",
    ]
    (target / "rank-0/checkpoint-9/model").write_bytes(b"torn")
    before = (target / "rank-0/checkpoint-9/deep/state").stat()
    assert len(download_checkpoints(place.store, JOB, target)) == 4
    assert (target / "rank-0/checkpoint-9/deep/state").stat().st_ino == before.st_ino
    assert {
        str(path.relative_to(target / "rank-0")): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    } == below(CHECKPOINTS)
    with pytest.raises(NoCheckpointError, match=r"no such one is up; there are: checkpoint-9 \(COMPLETED\)"):
        download_checkpoints(place.store, JOB, target, ["checkpoint-1"])


def test_a_download_that_is_damaged_or_leads_out_is_refused(local: Place, tmp_path: Path) -> None:
    filled(local, **CHECKPOINTS)
    (local.top / "store/files" / JOB / "rank-0/checkpoint-10/model").write_bytes(b"TEN")
    with pytest.raises(DamagedError, match="BLAKE3 differs"):
        download_checkpoints(local.store, JOB, tmp_path / "target", ["checkpoint-10"])
    assert not [path for path in (tmp_path / "target").rglob("*") if path.is_file()]
    (tmp_path / "target/rank-0/checkpoint-9").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is a link out of"):
        download_checkpoints(local.store, JOB, tmp_path / "target", ["checkpoint-9"])
    planted = SyncRecord(job_id=JOB, files={"../../planted": FileRecord(4, 0, "0" * 64)})
    local.store.put(record_key(JOB, 0), encoded(planted))
    with pytest.raises(StoreError, match="would lead out of its directory"):
        download_checkpoints(local.store, JOB, tmp_path / "target")


def test_a_record_of_a_newer_trainer_or_of_nobody_is_refused(local: Place) -> None:
    for content, says in ((b"{}", "is no record"), (b'{"format":2,"job_id":"x"}', "newer trainer")):
        local.store.put(record_key(JOB, 0), content)
        with pytest.raises(StoreError, match=says):
            list_checkpoints(local.store, JOB)


def test_delete_takes_one_jobs_alone(place: Place) -> None:
    filled(place, **CHECKPOINTS)
    filled(place, job="job-10", **CHECKPOINTS)
    delete_checkpoints(place.store, JOB)
    assert list_checkpoints(place.store, JOB) == []
    assert place.up() == {}
    assert place.up("job-10") == below(CHECKPOINTS)


# ---- another job loads them --------------------------------------------------------------------


def test_which_checkpoint_is_meant(local: Place) -> None:
    config = StoreConfig(url=str(local.top / "store"), secret_name="keys")
    filled(local, job="old", a__x=b"a", b__x=b"b")
    filled(local, job="new", c__run__x=b"c")
    local.store.put(
        record_key("broken", 0),
        encoded(SyncRecord(job_id="broken", files={"half/x": FileRecord(1, 10**18)})),
    )

    def found(*wanted: Wanted) -> list[str]:
        sources = load_sources(local.store, config, wanted, "/load/")
        assert all(each.as_weights()["auth_secret_name"] == "keys" for each in sources)
        return [f"{each.source.removeprefix(local.store.source)} {each.mount_location}" for each in sources]

    assert found(Wanted(["old"])) == ["/files/old/rank-0/b /load/rank-0/b"]
    assert found(Wanted(["broken", "none", "new", "old"])) == ["/files/new/rank-0/c /load/rank-0/c"]
    assert found(Wanted(["old"], "a"), Wanted(["new"], "c/run")) == [
        "/files/old/rank-0/a /load/rank-0/a",
        "/files/new/rank-0/c/run /load/rank-0/c/run",
    ]
    with pytest.raises(
        NoCheckpointError, match=r"'z' of old: no such one is up; there are: a \(COMPLETED\), b"
    ):
        found(Wanted(["old"], "z"))
    with pytest.raises(NoCheckpointError, match=r"no such one is up; there are: half \(SYNCING\)"):
        found(Wanted(["broken"]))
    with pytest.raises(NoCheckpointError, match="it has none; was checkpointing_config enabled"):
        found(Wanted(["none"]))
    with pytest.raises(ConfigError, match="two checkpoints would be rank-0/c; load one"):
        found(Wanted(["new"], "c"), Wanted(["new"], "c/run"))


def test_while_the_store_is_away_the_local_record_says_what_was_up(
    remote: Place, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_ATTEMPTS", 2)
    remote.write(a__x=b"a")
    assert remote.finish().state == "COMPLETED"
    config = replace(bucket.config(), url=remote.store.source)
    bucket.faults.add(Fault(status=503, times=None))
    (source,) = load_sources(remote.store, config, [Wanted([JOB])], records=remote.record.parent)
    assert source.as_weights() == {
        "source": f"{remote.store.source}/files/{JOB}/rank-0/a",
        "mount_location": "/tmp/loaded_checkpoints/rank-0/a",
    }
    with pytest.raises(StoreError, match="answered 503"):
        load_sources(remote.store, config, [Wanted(["another"])], records=remote.record.parent)


@pytest.mark.parametrize(
    "names", [["checkpoint-9"], ["checkpoint-9", "loose[1]*.pt"]], ids=["directory", "files"]
)
def test_bdnfs_brings_them_where_the_job_looks(
    place: Place, node: Node, bucket: Bucket, names: list[str]
) -> None:
    filled(place, **CHECKPOINTS)
    folder = node.place / "loaded"
    config = StoreConfig(url=place.store.source, environment=bucket.environment)
    wanted = [Wanted([JOB], name) for name in names]
    sources = load_sources(place.store, config, wanted, str(folder))
    spec = node.spec(*(each.as_weights() for each in sources))
    expected = {
        f"rank-0/{path}": content
        for path, content in below(CHECKPOINTS).items()
        if path.partition("/")[0] in names
    }
    show = f"import json, pathlib; top = pathlib.Path({str(folder)!r}); print(json.dumps({{str(p.relative_to(top)): "
    show += "p.read_text() for p in top.rglob('*') if p.is_file()}))"
    for environment in (bucket.environment, {**bucket.environment, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}):
        said = node.run("run", spec, "--", sys.executable, "-c", show, **environment).out
        assert json.loads(said) == {path: content.decode() for path, content in expected.items()}
        # The second time from the node cache: an object store that is away is not missed.
        if place.store.source.startswith("file:"):
            break


def test_a_local_record_is_replaced_whole(local: Place) -> None:
    local.write(a__x=b"a")
    assert local.finish().state == "COMPLETED"
    record = read_local(local.record)
    assert record is not None
    assert record.ended
    assert [path.name for path in local.record.parent.iterdir()] == [f"{JOB}.json"]
