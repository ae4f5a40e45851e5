"""The training cache: one directory for each project and team, measured, capped, deleted."""

import os
from pathlib import Path

import pytest

from tests.commands.node import until
from trainer.storage import training_cache
from trainer.storage.errors import PlaceError, SpaceError
from trainer.storage.training_cache import (
    SORT_KEYS,
    SortKey,
    check_room,
    delete_project_cache,
    project_cache,
    size_of,
    summarize,
    team_cache,
    watched,
)

NAMES = [
    "tiny",
    "Tiny",
    "a b",
    "a/b",
    "a%2Fb",
    "..",
    ".",
    "../../etc",
    ".hidden",
    "ü" * 300,
    "ü" * 301,
    "x" * 5000,
]


def test_every_name_has_a_directory_of_its_own_inside(tmp_path: Path) -> None:
    found = [project_cache(tmp_path, name) for name in NAMES]
    assert len(set(found)) == len(NAMES)
    for name, directory in zip(NAMES, found, strict=True):
        assert directory.parent == tmp_path / "cache"
        assert directory.resolve() == directory
        assert project_cache(tmp_path, name) == directory
        assert team_cache(tmp_path, name).parent == tmp_path / "teams"
    with pytest.raises(PlaceError, match="empty"):
        project_cache(tmp_path, "")


def stocked(home: Path, project: str = "tiny") -> Path:
    cache = project_cache(home, project)
    (cache / "data" / "deep").mkdir(parents=True)
    (cache / "data" / "deep" / "large").write_bytes(os.urandom(300_000))
    (cache / "data" / "small").write_bytes(b"s")
    (cache / "other").write_bytes(os.urandom(50_000))
    os.link(cache / "data" / "deep" / "large", cache / "again")
    (cache / "link").symlink_to("/usr")
    os.utime(cache / "other", (1, 1))
    return cache


def test_summarize_counts_what_the_disk_holds(tmp_path: Path) -> None:
    cache = stocked(tmp_path)
    found = summarize(cache, cap_bytes=10**9)
    entries = {each.path: each for each in found.entries}
    assert list(entries) == ["again", "data", "data/deep", "data/deep/large", "data/small", "link", "other"]
    assert (found.files, found.cap_bytes) == (4, 10**9)
    assert found.size_bytes == size_of(cache)
    large = entries["again"].size_bytes + entries["data/deep/large"].size_bytes
    assert 300_000 <= large < 320_000, "both names of one file take its blocks once"
    assert entries["data"].size_bytes >= entries["data/deep"].size_bytes + entries["data/small"].size_bytes
    assert entries["link"].file_type == "symlink"
    assert entries["link"].size_bytes < 5000, "what a link points to is not the cache's"
    assert entries["other"].permissions == "-rw-r--r--"
    assert entries["other"].modified_s == 1.0


@pytest.mark.parametrize(
    ("key", "first"),
    [
        ("filepath", "again"),
        ("size", "data/deep/large"),
        ("modified", "other"),
        ("type", "data"),
        ("permissions", "again"),
    ],
)
def test_summarize_in_every_order(tmp_path: Path, key: SortKey, first: str) -> None:
    cache = stocked(tmp_path)
    up = [each.path for each in summarize(cache, sort=key).entries]
    down = [each.path for each in summarize(cache, sort=key, order="desc").entries]
    assert key in SORT_KEYS
    assert up == down[::-1]
    assert up[0] == first


def test_a_full_cache_keeps_the_next_job_from_starting(tmp_path: Path) -> None:
    cache = stocked(tmp_path)
    assert check_room(cache) == size_of(cache)
    with pytest.raises(
        SpaceError, match=r"takes 3\d\d,\d{3} bytes, its cap is 300,000; see what is in it with"
    ):
        check_room(cache, 300_000)


def test_a_job_that_passes_the_cap_is_told_of_once_for_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = project_cache(tmp_path, "tiny")
    said: list[str] = []
    found: list[int] = []
    real = training_cache.size_of

    def noted(directory: Path) -> int:
        found.append(real(directory))
        return found[-1]

    def looked(at_least: int = 0, below: int = 10**9) -> None:
        """Wait for two looks that find the cache so, the second of which has been thought about."""
        del found[:]
        until(lambda: len([each for each in found if at_least <= each < below]) > 2, "three looks")

    monkeypatch.setattr(training_cache, "size_of", noted)
    with watched(cache, 100_000, said.append, every_s=0.01):
        for _ in range(2):
            looked(below=100_000)
            (cache / "large").write_bytes(bytes(200_000))
            looked(at_least=100_000)
            (cache / "large").unlink()
    assert len(said) == 2
    assert "its cap is 100,000" in said[0]


def test_deleting_a_project_takes_its_cache_and_no_other(tmp_path: Path) -> None:
    cache, other, team = stocked(tmp_path), stocked(tmp_path, "other"), team_cache(tmp_path, "tiny")
    (cache / "data").chmod(0o500)
    (cache.parent / ".deleted-by-a-crash").mkdir()
    freed = delete_project_cache(tmp_path, "tiny")
    assert 350_000 <= freed < 400_000
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["other"]
    assert other.is_dir()
    assert team.is_dir()
    assert delete_project_cache(tmp_path, "tiny") == 0
