"""Places for checkpoints: a directory, one by fsspec, and a bucket whose server can be made to fail."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from benchmarks.servers.faults import Fault, Faults
from tests.contract.gcs import GcsSite
from tests.contract.servers import S3Site, child
from tests.upstream.proxy import FaultyProxy
from trainer.storage.checkpoint_fsspec import FsspecStore
from trainer.storage.checkpoint_store import CheckpointStore, StoreConfig, open_checkpoint_store

SECRET_KEY = "PLANTEDxSECRETxKEY"
MIB = 1 << 20


class Bucket:
    """An S3 server (moto) behind a proxy. faults: what requests meet; asked: what was asked."""

    def __init__(self, proxy: FaultyProxy, faults: Faults, site: S3Site) -> None:
        self._proxy, self.faults, self.site = proxy, faults, site
        self.environment = {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }
        self._count = 0

    def config(self) -> StoreConfig:
        """Return a prefix of its own that nothing is in."""
        self._count += 1
        return StoreConfig(url=f"s3://models/checkpoints/{self._count}/", environment=self.environment)

    def puts(self) -> list[str]:
        """The files uploaded so far, by their last name; records aside, and each part of one counted."""
        return [
            each.path.rpartition("/")[2]
            for each in self._proxy.asked
            if each.method == "PUT" and "/files/" in each.path
        ]

    def forget(self) -> None:
        self._proxy.asked.clear()

    def goes_away(self) -> None:
        self.faults.add(Fault(reset=True, times=None))

    def is_back(self) -> None:
        self.faults.clear()


@contextmanager
def serving_bucket() -> Iterator[Bucket]:
    site, faults = S3Site(), Faults()
    with child(site.argv, site.port), FaultyProxy(site.port, faults) as proxy:
        site.client().create_bucket(Bucket="models")
        yield Bucket(proxy, faults, site)


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """One server for all tests of a process: it takes seconds to start."""
    with serving_bucket() as made:
        yield made


class GcsBucket:
    """Google Cloud Storage's emulator: what `gs://` reaches while STORAGE_EMULATOR_HOST says so."""

    def __init__(self, site: GcsSite) -> None:
        self.site = site
        # Nobody is asked who this machine is: that takes seconds.
        self.environment = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{site.port}", "NO_GCE_CHECK": "true"}
        self._count = 0

    def config(self) -> StoreConfig:
        """Return a prefix of its own that nothing is in."""
        self._count += 1
        return StoreConfig(url=f"gs://models/checkpoints/{self._count}/")


def service_account(token_uri: str) -> str:
    """Return the JSON key of a service account of nobody's, whose tokens come from token_uri."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
    account = {
        "type": "service_account",
        "client_email": "reader@p.iam.gserviceaccount.com",
        "project_id": "p",
    }
    return json.dumps({**account, "private_key": pem, "private_key_id": "1", "token_uri": token_uri})


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsBucket]:
    site = GcsSite()
    with child(site.argv, site.port):
        site.make("models")
        yield GcsBucket(site)


@pytest.fixture
def gcs(gcs_server: GcsBucket, monkeypatch: pytest.MonkeyPatch) -> GcsBucket:
    for name, value in gcs_server.environment.items():
        monkeypatch.setenv(name, value)
    return gcs_server


def opened(kind: str, directory: Path, bucket: Bucket) -> CheckpointStore:
    """Return an empty store of kind: directory, fsspec or s3."""
    if kind == "s3":
        return open_checkpoint_store(bucket.config())
    if kind == "fsspec":
        return FsspecStore(f"file://{directory}", {})
    return open_checkpoint_store(StoreConfig(url=str(directory)))
