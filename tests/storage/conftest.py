"""Disks of a test's own, and a Hub that has something to fill them with."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.storage.contents import NEW
from tests.storage.disks import Disks
from tests.unit.delivery.downloads import REPO


@pytest.fixture(scope="module")
def disks() -> Iterator[Disks]:
    if os.geteuid() != 0:
        pytest.skip("mounting a disk of one's own needs root")
    with tempfile.TemporaryDirectory(prefix="bdnfs-disks-", dir="/var/tmp") as directory:
        made = Disks(Path(directory))
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        hub.commit(REPO, NEW)
        yield hub
