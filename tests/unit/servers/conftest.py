"""A Hub with one model, and a plain client that follows and hides nothing."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from benchmarks.servers.hub import HubServer

REPO = "org/model"
WEIGHTS = os.urandom(300_000)
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "sub/dir/notes.txt": b"notes"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as hub:
        hub.commit(REPO, FILES)
        yield hub


class Client:
    def __init__(self) -> None:
        self.pool = urllib3.PoolManager(retries=False, timeout=20.0)

    def get(self, url: str, method: str = "GET", **headers: str) -> urllib3.BaseHTTPResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.pool.request(method, url, headers=named, redirect=False)


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.pool.clear()
