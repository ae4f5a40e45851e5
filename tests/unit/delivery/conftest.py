"""One Hub for the session, and a cache for each test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdnfs.cache.node import NodeCache
from bdnfs.origins.base import Origin
from benchmarks.servers.hub import HubServer
from tests.unit.cache.stocked import open_cache
from tests.unit.delivery.downloads import hub_origin


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(served: HubServer) -> Iterator[HubServer]:
    served.faults.clear()
    served.reset()
    yield served
    served.faults.clear()


@pytest.fixture
def origin(hub: HubServer) -> Iterator[Origin]:
    origin = hub_origin(hub.url)
    yield origin
    origin.close()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[NodeCache]:
    cache = open_cache(tmp_path / "cache")
    yield cache
    cache.close()


@pytest.fixture
def opened_caches(tmp_path: Path) -> Iterator[Callable[..., NodeCache]]:
    caches: list[NodeCache] = []

    def start(**fields: object) -> NodeCache:
        caches.append(open_cache(tmp_path / "cache", **fields))
        return caches[-1]

    yield start
    for cache in caches:
        cache.close()
