"""One suite for every place that checkpoints are kept in."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.servers.faults import PASSING, Fault, Faults
from tests.contract.azurite import ACCOUNT, KEY, AzureSite
from tests.contract.servers import child
from tests.storage.disks import Disks, fill_up
from tests.trainer.confined import needs_root
from tests.trainer.stores import MIB, SECRET_KEY, Bucket, GcsBucket, opened
from tests.upstream.proxy import FaultyProxy
from trainer.errors import ConfigError
from trainer.storage.checkpoint_store import (
    ChangedFileError,
    CheckpointStore,
    StoreConfig,
    Stored,
    open_checkpoint_store,
)
from trainer.storage.errors import StoreAwayError, StoreError

LARGE = os.urandom(20 * MIB)  # two parts


# What gcsfs does is its own to mend.
GS = pytest.param("gs", marks=pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"))


@pytest.fixture(params=["directory", "fsspec", "s3", GS, pytest.param("azure", marks=pytest.mark.long)])
def store(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> Iterator[CheckpointStore]:
    if request.param == "azure":
        yield open_checkpoint_store(request.getfixturevalue("azure"))
        return
    if request.param == "gs":
        yield open_checkpoint_store(request.getfixturevalue("gcs").config())
        return
    yield opened(request.param, tmp_path / "store", bucket)
    bucket.is_back()


@pytest.fixture
def azure() -> Iterator[StoreConfig]:
    site = AzureSite()
    with child(site.argv, site.port):
        site.make("models")
        yield StoreConfig(
            url=f"azure://{ACCOUNT}/models/checkpoints",
            secret=json.dumps({"account_key": KEY}),
            secret_name="account",
            environment={"AZURE_STORAGE_ENDPOINT": site.endpoint(site.port)},
        )


def never() -> bool:
    return False


def listed(store: CheckpointStore) -> list[Stored]:
    return sorted(store.list("files/job/"))


@pytest.mark.parametrize("content", [b"", b"small", LARGE], ids=["empty", "small", "large"])
def test_a_file_comes_back_as_it_was(store: CheckpointStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    name = "a b/ünï#?%+&.bin"
    digest = store.put_file(f"files/job/{name}", tmp_path / "file", never)
    assert listed(store) == [(f"files/job/{name}", len(content))]
    assert store.get_file(f"files/job/{name}", tmp_path / "back", len(content)) == digest
    assert (tmp_path / "back").read_bytes() == content
    (tmp_path / "file").write_bytes(b"another")
    assert store.put_file(f"files/job/{name}", tmp_path / "file", never) != digest
    assert listed(store) == [(f"files/job/{name}", 7)]


def test_small_objects_and_what_is_not_there(store: CheckpointStore) -> None:
    assert store.get("records/1.json") is None
    store.put("records/1.json", b"one")
    store.put("records/1.json", b"two")
    store.put("records/10.json", b"ten")
    store.put("recordsandmore", b"")
    assert store.get("records/1.json") == b"two"
    assert [each.key for each in sorted(store.list("records/"))] == ["records/1.json", "records/10.json"]
    store.delete("records/")
    assert list(store.list("records/")) == []
    assert store.get("recordsandmore") == b""
    store.delete("nothing/")
    assert list(store.list("nothing/")) == []


@pytest.mark.parametrize("what", ["grows", "is replaced in place", "is unwanted"])
def test_what_changes_on_the_way_is_never_shown(store: CheckpointStore, tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(LARGE)
    looks = []

    def stopped() -> bool:
        looks.append(1)
        if len(looks) != 2:
            return False
        with path.open("r+b") as file:
            file.seek(0, os.SEEK_END if what == "grows" else 0)
            file.write(b"!")
        return what == "is unwanted"

    with pytest.raises(ChangedFileError):
        store.put_file("files/job/file", path, stopped)
    assert listed(store) == []


def test_links_and_what_is_gone_are_not_uploaded(store: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("link", "missing"):
        with pytest.raises(ChangedFileError):
            store.put_file("files/job/file", tmp_path / name, never)
    assert listed(store) == []


# ---- a bucket ----------------------------------------------------------------------------------


@pytest.fixture
def objects(tmp_path: Path, bucket: Bucket) -> Iterator[CheckpointStore]:
    yield opened("s3", tmp_path, bucket)
    bucket.is_back()


@pytest.mark.parametrize("fault", [each for each in PASSING if each.truncate_at is None], ids=str)
def test_a_fault_that_passes_costs_nothing(
    objects: CheckpointStore, bucket: Bucket, tmp_path: Path, fault: Fault
) -> None:
    (tmp_path / "file").write_bytes(b"small")
    bucket.faults.add(fault)
    objects.put_file("files/job/file", tmp_path / "file", never)
    assert listed(objects) == [("files/job/file", 5)]


DENIED = "<Error><Code>SignatureDoesNotMatch</Code><Message>echoed-by-the-server</Message></Error>"


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (Fault(status=500, times=None), StoreAwayError, "answered 500"),
        (Fault(reset=True, times=None), StoreAwayError, "broke off"),
        (
            Fault(status=403, times=None, body=DENIED),
            StoreError,
            "refused the credentials .*SignatureDoesNot",
        ),
        (Fault(status=400, times=None, body=DENIED), StoreError, "answered 400"),
        (Fault(status=404, times=None, body="<Code>NoSuchBucket</Code>"), StoreError, "no such bucket"),
    ],
)
def test_a_fault_that_lasts_is_told_apart_and_quotes_nobody(
    objects: CheckpointStore, bucket: Bucket, tmp_path: Path, fault: Fault, kind: type[StoreError], says: str
) -> None:
    (tmp_path / "file").write_bytes(b"small")
    bucket.faults.add(fault)
    with pytest.raises(kind, match=says) as raised:
        objects.put_file("files/job/file", tmp_path / "file", never)
    assert isinstance(raised.value, StoreAwayError) == (kind is StoreAwayError)
    for secret in (SECRET_KEY, "echoed", "AKIDEXAMPLE"):
        assert secret not in str(raised.value)


@pytest.mark.parametrize("status", [401, 403])
def test_what_google_refuses_is_told_from_what_may_pass(
    gcs: GcsBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    (tmp_path / "file").write_bytes(b"small")
    faults = Faults()
    faults.add(Fault(status=status, times=None, body='{"error": {"message": "echoed"}}'))
    with FaultyProxy(gcs.site.port, faults) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        store = open_checkpoint_store(gcs.config())
        with pytest.raises(StoreError, match="refused the credentials") as raised:
            store.put_file("files/job/file", tmp_path / "file", never)
    assert not isinstance(raised.value, StoreAwayError)
    assert "echoed" not in str(raised.value)


# ---- a directory -------------------------------------------------------------------------------


@needs_root
def test_a_full_directory_may_have_room_again(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    try:
        disk = disks.tmpfs(2)
        filler = fill_up(disk.at, leave_bytes=100_000)
        (tmp_path / "file").write_bytes(bytes(500_000))
        store = open_checkpoint_store(StoreConfig(url=f"file://{disk.at}/store"))
        with pytest.raises(StoreAwayError, match="No space left on device; free space there"):
            store.put_file("files/job/file", tmp_path / "file", never)
        assert listed(store) == []
        filler.unlink()
        store.put_file("files/job/file", tmp_path / "file", never)
        assert listed(store) == [("files/job/file", 500_000)]
    finally:
        disks.close()


# ---- URLs and secrets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (StoreConfig(url="models"), "is no store; write s3://"),
        (StoreConfig(url="file://relative/x"), "no absolute path"),
        (StoreConfig(url="s3:///x"), "names no bucket"),
        (StoreConfig(url="azure://account"), "names no bucket"),
        (StoreConfig(url="nobody://x/y"), "nothing here opens nobody://"),
        (StoreConfig(url="sftp://me:PLANTED@host/x"), "holds credentials; put them into a secret"),
        (StoreConfig(url="s3://b", secret="PLANTED", secret_name="keys"), "the secret keys is not JSON"),
        (
            StoreConfig(url="s3://b", secret='{"access_key_id": "PLANTED"}', secret_name="keys"),
            "has no aws_access_key_id; it holds access_key_id: add aws_ to the names",
        ),
        (
            StoreConfig(url="azure://a/c", secret='{"key": "PLANTED"}', secret_name="keys"),
            "neither account_key",
        ),
        (StoreConfig(url="gs://b", secret="PLANTED", secret_name="keys"), "no service account's JSON key"),
    ],
)
def test_a_url_or_secret_of_no_use_is_refused_at_once(config: StoreConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        open_checkpoint_store(config)
    assert "PLANTED" not in str(raised.value) + repr(config).replace(config.url, "")


def test_a_secret_opens_the_bucket(bucket: Bucket) -> None:
    keys = f'{{"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "{SECRET_KEY}"}}'
    endpoint = {"AWS_ENDPOINT_URL": bucket.environment["AWS_ENDPOINT_URL"]}
    store = open_checkpoint_store(
        StoreConfig(url="s3://models/by-secret", secret=keys, secret_name="keys", environment=endpoint)
    )
    store.put("x", b"x")
    assert store.get("x") == b"x"
