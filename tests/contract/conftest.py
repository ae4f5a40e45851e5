"""The sites, each started once."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.azurite import AzureSite
from tests.contract.gcs import GcsSite
from tests.contract.servers import (
    CwSite,
    DirectorySite,
    FsspecSite,
    HubSite,
    NginxSite,
    R2Site,
    S3Site,
    SftpSite,
    Site,
    child,
)

SITES = ("hub", "nginx", "nginx-no-ranges", "s3", "r2", "cw", "azure", "gs", "file", "fsspec", "sftp")

# What speaks S3; in this directory on one server, which takes some seconds to start.
_ON_S3 = {"s3": S3Site, "r2": R2Site, "cw": CwSite}


@contextlib.contextmanager
def started(kind: str, directory: Path) -> Iterator[Site]:
    if kind == "hub":
        site = HubSite(directory)
        with site.server:
            yield site
        return
    if kind in ("file", "fsspec"):
        yield DirectorySite(directory) if kind == "file" else FsspecSite(directory)
        return
    served: NginxSite | S3Site | AzureSite | GcsSite | SftpSite
    buckets = {**_ON_S3, "azure": AzureSite, "gs": GcsSite}
    if kind in buckets:
        served = buckets[kind]()
    elif kind == "sftp":
        served = SftpSite(directory)
    else:
        served = NginxSite(directory, ranged=kind == "nginx")
    with child(served.argv, served.port):
        yield served


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with started("s3", tmp_path_factory.mktemp("s3")) as found:
        assert isinstance(found, S3Site)
        yield found.port


def on_s3(kind: str, port: int) -> S3Site:
    found = _ON_S3[kind]()
    found.port = found.reached = port
    return found


@pytest.fixture(scope="module", params=SITES)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if request.param in _ON_S3:
        yield on_s3(request.param, request.getfixturevalue("s3_port"))
        return
    with started(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.fixture(scope="module")
def s3(s3_port: int) -> S3Site:
    return on_s3("s3", s3_port)


@pytest.fixture(scope="module")
def sftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SftpSite]:
    with started("sftp", tmp_path_factory.mktemp("sftp")) as found:
        assert isinstance(found, SftpSite)
        yield found


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureSite]:
    with started("azure", tmp_path_factory.mktemp("azure")) as found:
        assert isinstance(found, AzureSite)
        yield found


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsSite]:
    with started("gs", tmp_path_factory.mktemp("gs")) as found:
        assert isinstance(found, GcsSite)
        yield found
