"""A cache in a directory of its own, and small filesystems that can be filled up."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdnfs.cache.node import NodeCache
from tests.unit.cache.stocked import Mounts, open_cache


@pytest.fixture
def mounts() -> Mounts:
    return Mounts()


@pytest.fixture
def opened(tmp_path: Path, mounts: Mounts) -> Iterator[Callable[..., NodeCache]]:
    """Return a function that opens the test's cache; each is closed with the test."""
    caches: list[NodeCache] = []

    def start(directory: Path | None = None, **fields: object) -> NodeCache:
        caches.append(open_cache(directory or tmp_path / "cache", mounts, **fields))
        return caches[-1]

    yield start
    for cache in caches:
        cache.close()


@pytest.fixture
def cache(opened: Callable[..., NodeCache]) -> NodeCache:
    return opened()


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts an empty filesystem of so many MiB; all are gone with the test."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small filesystem needs root")
    mounted: list[Path] = []

    def make(kind: str, size_mib: int) -> Path:
        place = tmp_path / f"{kind}-{len(mounted)}"
        place.mkdir()
        if kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=700", "tmpfs", str(place)]
        else:
            image = tmp_path / f"image-{len(mounted)}"
            with image.open("wb") as file:
                file.truncate(size_mib << 20)
            quiet = ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)]
            subprocess.run(quiet, check=True, capture_output=True, timeout=30)
            command = ["mount", "-o", "loop", str(image), str(place)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        if done.returncode:
            pytest.skip(f"a {kind} can't be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in reversed(mounted):
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True, timeout=30)
