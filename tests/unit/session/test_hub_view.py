"""The records of Hub views: what is half made goes, and what a damaged one holds leads nowhere else."""

import json
import os
from pathlib import Path

import pytest

from bdnfs.cache.layout import Layout
from bdnfs.session.hub_view import View, check_free, make_view, take_back_views, viewed
from bdnfs.session.records import location_file

COMMIT = "c" * 40
LOCATION = "/app/model"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "cache")
    made.prepare()
    return made


def view(tmp_path: Path) -> View:
    return View(str(tmp_path / "deep" / "hub"), "models--org--name", ("main", "v1/long"), COMMIT, ())


def take_back(layout: Layout, location: str = LOCATION, mounted: bool = False) -> None:
    take_back_views(layout, location, lambda _: mounted, lambda users: set())


def tree(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_made_as_a_hub_cache_is_and_taken_back(layout: Layout, tmp_path: Path) -> None:
    wanted = view(tmp_path)
    check_free(layout, {LOCATION: wanted})
    make_view(layout, LOCATION, wanted, "pid:[1]")
    repository = tmp_path / "deep/hub/models--org--name"
    assert (repository / "refs/v1/long").read_text() == (repository / "refs/main").read_text() == COMMIT
    assert os.readlink(repository / "snapshots" / COMMIT) == LOCATION
    assert viewed(layout) == [LOCATION]
    take_back(layout, mounted=True)
    take_back(layout, "/app/mod")
    assert repository.exists()
    take_back(layout, "/app")
    assert not (tmp_path / "deep").exists()
    assert viewed(layout) == []


@pytest.mark.parametrize("kept", range(7))
def test_whatever_of_it_is_there_goes(layout: Layout, tmp_path: Path, kept: int) -> None:
    """As if its maker had been killed after each step, or somebody had removed a part by hand."""
    make_view(layout, LOCATION, view(tmp_path), "pid:[1]")
    parts = sorted((tmp_path / "deep").rglob("*"), reverse=True)
    for path in parts[kept:]:
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink()
    take_back(layout)
    assert not (tmp_path / "deep").exists()
    assert viewed(layout) == []


def test_what_others_put_beside_it_stays(layout: Layout, tmp_path: Path) -> None:
    make_view(layout, LOCATION, view(tmp_path), "pid:[1]")
    repository = tmp_path / "deep/hub/models--org--name"
    (repository / "refs/main").write_text("d" * 40)
    (repository / "snapshots" / ("d" * 40)).mkdir()
    take_back(layout)
    left = ["refs", "refs/main", "snapshots", f"snapshots/{'d' * 40}"]
    assert tree(repository) == left


@pytest.mark.parametrize(
    "damage",
    [
        {"folder": "../models--org--name"},
        {"folder": "models--../name"},
        {"names": ["../../../../precious"]},
        {"commit": "../../x"},
        {"directory": "relative"},
        {"made": ["relative"]},
    ],
)
def test_a_damaged_record_leads_nowhere(layout: Layout, tmp_path: Path, damage: dict[str, object]) -> None:
    make_view(layout, LOCATION, view(tmp_path), "pid:[1]")
    before = tree(tmp_path / "deep")
    record = location_file(layout, LOCATION, "hub")
    found = json.loads(record.read_text())
    found["views"][0].update(damage)
    record.write_text(json.dumps(found))
    take_back(layout)
    assert tree(tmp_path / "deep") == before
