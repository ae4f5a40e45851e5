"""storage, small: that it runs, what it leaves, what it says. Never how fast."""

import os
from pathlib import Path

import pytest

from benchmarks.storage import PLACES, PUBLIC, WAYS, result, storage_table
from tests.unit.benchmarks.conftest import benchmark

MACHINE = {
    "cpu": "one",
    "cpus": 2,
    "kernel": "6",
    "filesystem": "ext4",
    "fsync": {"median_s": 0.001},
    "load_average": 0.0,
    "commit": None,
    "date": "today",
}


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a scratch needs root")
def test_storage_small_measures_every_place_in_every_way_and_leaves_nothing(tmp_path: Path) -> None:
    place, output = tmp_path / "place", tmp_path / "output"
    found = benchmark("storage", "--small", "--repeats", "1", "--directory", place, "--output", output)
    for name in PLACES:
        assert {f"{way}_bytes_per_s" for way in WAYS} <= found[name].keys()
        assert all(found[name][f"{way}_bytes_per_s"] > 1e5 for way in WAYS)
    assert found["scratch"]["kind"] == "image"
    assert found["public_gb_per_s"]["node"]["read"] == list(PUBLIC["node"]["read"])
    assert list(place.iterdir()) == []
    assert str(place) not in Path("/proc/self/mountinfo").read_text()
    assert "| training cache |" in (output / "storage.md").read_text()


def test_figures_are_medians_and_ratios_are_of_the_nodes_disk() -> None:
    raw = {name: {way: [1e9, 3e9, 2e9] for way in WAYS} for name in PLACES}
    raw["scratch"]["read"] = [1e9, 1e9, 9e9]
    found = result(raw, {"kind": "tmpfs", "said": "in memory"}, 1 << 30, 3, MACHINE)
    assert found["node"]["read_bytes_per_s"] == 2e9
    assert found["ratio"]["scratch_read_over_node"] == 0.5
    assert found["ratio"]["training_cache_write_over_node"] == 1.0
    table = storage_table(found)
    assert "| node storage   | 2.00 | " in table
    assert "Scratch: tmpfs: in memory." in table
    assert all(f"- {way}: " in table for way in WAYS)
