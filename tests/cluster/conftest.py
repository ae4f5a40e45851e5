"""Redis servers: one for a module, and others that a test may kill."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.redis import RedisServer


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def serve_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    started: list[RedisServer] = []

    def start(**how: bool) -> RedisServer:
        started.append(RedisServer(tmp_path / f"redis-{len(started)}", **how))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def collected() -> Iterator[None]:
    """What a test leaves to the collector is found under that test's own filters."""
    yield
    gc.collect()
