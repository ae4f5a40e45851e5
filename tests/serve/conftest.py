"""Services that end with their test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bdnfs.mirror.directory import DirectoryStore
from tests.serve.served import FILES, Served, fill


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start `bdnfs serve-volumes` with these words and sections of the config."""
    started: list[Served] = []

    def start(*words: str, **how: Any) -> Served:
        started.append(Served(tmp_path / f"service-{len(started)}", *words, **how))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def mirror(tmp_path: Path) -> str:
    """A directory that holds one volume of one tenant."""
    fill(DirectoryStore(str(tmp_path / "mirror")), "default", "tiny", FILES)
    return str(tmp_path / "mirror")
