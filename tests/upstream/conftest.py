"""The servers with faults before them, each started once a process, when it is first asked for."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdnfs.cache.node import NodeCache
from bdnfs.origins import sftp
from tests.unit.cache.stocked import open_cache
from tests.upstream.fronts import Front, fronted


class Fronts:
    """Every kind of server that a test has asked for so far."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self._found: dict[str, Front] = {}

    def __getitem__(self, kind: str) -> Front:
        if kind not in self._found:
            self._found[kind] = self._stack.enter_context(fronted(kind, self._directory / kind))
        return self._found[kind]


@pytest.fixture(scope="session")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronts]:
    with contextlib.ExitStack() as stack:
        yield Fronts(tmp_path_factory.mktemp("fronts"), stack)


@pytest.fixture
def front(fronts: Fronts, kind: str) -> Iterator[Front]:
    """The server of this kind; nothing is wrong yet."""
    found = fronts[kind]
    found.faults.clear()
    yield found
    found.faults.clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What to call before faults are thrown: logins that get no answer are then given up soon."""
    return lambda: monkeypatch.setattr(sftp, "_CONNECT_TIMEOUT_S", 1.5)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[NodeCache]:
    cache = open_cache(tmp_path / "cache")
    yield cache
    cache.close()
