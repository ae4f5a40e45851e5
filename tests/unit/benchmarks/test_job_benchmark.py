"""job: that its figures are what they are called; small, that it runs and what it leaves. Never how fast."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.job.report import Raw, Run, job_table, result
from tests.unit.benchmarks.conftest import benchmark

# The issue's own words for what there is to be.
PROMISED: dict[str, set[str]] = {
    "cold": {"created_s", "deploying_s", "first_step_s"},
    "cluster_warm": {"created_s", "deploying_s", "first_step_s"},
    "warm": {"created_s", "deploying_s", "first_step_s"},
    "download_in_script": {"created_s", "deploying_s", "first_step_s"},
    "ratio": {"compute_held_cold", "compute_held_warm", "warm_over_local", "steps_per_s_over_without"},
}
MACHINE = {
    "gpu": None,
    "cpu": "one",
    "cpus": 2,
    "kernel": "6",
    "filesystem": "ext4",
    "load_average": 0.0,
    "huge_pages_bytes": 0,
    "commit": None,
    "date": "today",
}


def run(created_s: float, deploying_s: float, first_step_s: float, last_s: float, step_s: float) -> Run:
    return Run(created_s, deploying_s, first_step_s, last_s, step_s)


def measured() -> dict[str, Any]:
    raw = Raw(
        cold=[run(9, 1, 4, 9, 0.5)],
        cluster_warm=[replace(run(1, 2, 4, 9, 0.5), tier_bytes={"peer": 90, "mirror": 10})],
        warm=[run(1, 1, 3, 8, 0.5), run(1, 2, 6, 20, 1.0), run(1, 1, 3, 8, 0.4)],
        download_in_script=[run(0, 1, 9, 12, 0.5), run(0, 2, 18, 30, 1.0), run(0, 1, 7, 12, 0.5)],
        local=[run(0, 0, 3, 8, 0.5), run(0, 0, 6, 20, 1.0), run(0, 0, 3, 4, 0.5)],
        upstream_bytes={"warm": [0, 0, 0], "cold": [100], "cluster_warm": [0]},
    )
    return result(raw, 100, ["train.py"], MACHINE)


def test_figures_are_medians_and_ratios_are_those_of_pairs() -> None:
    found = measured()
    for section, keys in PROMISED.items():
        assert keys <= found[section].keys()
    assert found["warm"]["compute_held_s"] == 4
    clustered = found["cluster_warm"]
    assert [clustered[f"{tier}_bytes"] for tier in ("peer", "mirror", "upstream")] == [90, 10, 0]
    assert found["ratio"] == pytest.approx(
        {
            "compute_held_cold": 0.5,
            "compute_held_cluster_warm": 0.6,
            "compute_held_warm": 0.4,
            "warm_over_local": 1.0,
            "warm_first_step_over_local": 4 / 3,
            "steps_per_s_over_without": 1.0,
        }
    )


def test_the_table_says_what_was_reached() -> None:
    lines = job_table(measured()).splitlines()
    assert next(line for line in lines if line.startswith("| warm over local")).rstrip(" |").endswith("yes")
    assert any("compute held until the first step" in line for line in lines)
    assert any("90 bytes from the other node, 10 from the mirror, 0 from the Hub" in line for line in lines)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="a job's mounts need root")
def test_job_small_measures_all_that_is_promised_and_leaves_only_the_model(tmp_path: Path) -> None:
    place, output = tmp_path / "place", tmp_path / "output"
    words = ["--small", "--pairs", "1", "--misses", "1", "--steps", "3"]
    found = benchmark("job", *words, "--directory", place, "--output", output)
    for section, keys in PROMISED.items():
        assert keys <= found[section].keys()
        assert all(value >= 0 for value in found[section].values())
    assert found["cold"]["upstream_bytes"] > 2e6
    assert found["warm"]["upstream_bytes"] == 0
    assert found["cluster_warm"]["upstream_bytes"] == 0
    assert found["cluster_warm"]["peer_bytes"] > 2e6
    assert found["download_in_script"]["upstream_bytes"] > 2e6
    assert sorted(path.name for path in (place / "small").iterdir()) == ["benchmark.lock", "hub"]
    assert str(place) not in Path("/proc/self/mountinfo").read_text()
    assert "| DEPLOYING" in (output / "job.md").read_text()
