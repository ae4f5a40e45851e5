"""The stores a mirror may lie in: each test that takes `stores` runs on every kind, its server started once."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdnfs.mirror.store import Store
from tests.contract.servers import child
from tests.mirror.stores import AzureStores, DirectoryStores, GcsStores, S3Stores, Stores
from tests.storage.conftest import disks

__all__ = ["disks"]

# Those with a server.
REMOTE = ("s3", "azure", "gs")
# Those whose server looks at the keys.
CHECKING = ("azure",)
KINDS = ("directory", *REMOTE)


@contextlib.contextmanager
def started(kind: str, directory: Path) -> Iterator[Stores]:
    """Start what this kind of store needs."""
    if kind == "directory":
        yield DirectoryStores(directory)
        return
    served = {"s3": S3Stores, "azure": AzureStores, "gs": GcsStores}[kind]()
    with child(served.argv, served.port):
        yield served


@pytest.fixture(scope="module", params=KINDS)
def stores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Every kind of store in turn: `fresh()` opens one that nothing lies in."""
    with started(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture
def store(stores: Stores) -> Iterator[Store]:
    """A store of every kind, that nothing lies in."""
    found = stores.fresh()
    yield found
    found.close()
