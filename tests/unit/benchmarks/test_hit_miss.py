"""hit-miss, small: that it runs, what it leaves, what it says. Never how fast."""

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hit_miss import Raw, ratio, result
from benchmarks.report import hit_miss_plot, hit_miss_table
from tests.unit.benchmarks.conftest import benchmark

PROMISED = {
    "miss": {"ready_s", "upstream_bytes", "bytes_per_s", "peak_rss_bytes"},
    "hit": {"ready_s", "branch_ready_s", "upstream_bytes", "read_bytes_per_s", "load_s"},
    "native": {"read_bytes_per_s", "load_s"},
    "ratio": {"hit_read_over_native", "hit_load_over_native", "hit_ready_over_imports"},
}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_hit_miss_small_measures_all_that_is_promised_and_leaves_only_the_model(tmp_path: Path):
    place, output = tmp_path / "place", tmp_path / "output"
    found = benchmark(
        "hit-miss", "--small", "--pairs", "1", "--misses", "1", "--directory", place, "--output", output
    )
    for section, keys in PROMISED.items():
        assert keys <= found[section].keys()
        assert all(isinstance(value, int | float) for value in found[section].values())
    assert found["miss"]["upstream_bytes"] == found["bytes"]
    assert found["hit"]["upstream_bytes"] == 0
    assert all(value > 0 for value in found["ratio"].values())
    # Less than any process with Python in it takes would not be a measurement.
    assert 10e6 < found["miss"]["peak_rss_bytes"] < 4e9
    # 0: it ended before its command, whose figure has it then.
    daemon_rss_bytes = found["raw"]["miss_daemon_rss_bytes"][0]
    assert daemon_rss_bytes == 0 or daemon_rss_bytes > 10e6
    assert found["machine"]["fsync"]["median_s"] > 0
    assert (output / "hit-miss.png").read_bytes().startswith(PNG)
    assert "| bytes from upstream" in (output / "hit-miss.md").read_text()
    assert sorted(path.name for path in (place / "small").iterdir()) == ["benchmark.lock", "hub"]
    assert str(place) not in Path("/proc/self/mountinfo").read_text()


def measured() -> dict[str, Any]:
    raw = Raw(
        miss_ready_s=[2.0, 4.0, 3.0],
        miss_upstream_bytes=[900, 900, 901],
        miss_command_rss_bytes=[40, 41, 42],
        miss_daemon_rss_bytes=[50, 49, 48],
        imports_s=[0.1, 0.2, 0.1],
        locked_ready_s=[0.2, 0.4, 0.3],
        branch_ready_s=[0.3, 0.3, 0.3],
        pinned_ready_s=[0.2, 0.2, 0.2],
        native_read_bytes_per_s=[10e9, 20e9, 5e9],
        hit_read_bytes_per_s=[9e9, 20e9, 5e9],
        native_cold_read_bytes_per_s=[1e9],
        hit_cold_read_bytes_per_s=[1e9],
        native_load_s=[1.0, 1.0, 2.0],
        hit_load_s=[1.1, 1.2, 2.0],
    )
    machine = {
        "cpu": "one",
        "cpus": 2,
        "memory_bytes": 1e9,
        "kernel": "6",
        "filesystem": "ext4",
        "load_average": 0.0,
        "python": "3",
        "packages": {},
        "commit": None,
        "date": "today",
        "fsync": {"median_s": 0.001, "p99_s": 0.002},
    }
    return result(raw, 900, 0, 3, machine)


def test_figures_are_medians_ratios_are_those_of_pairs_and_bytes_and_memory_the_worst():
    found = measured()
    assert found["miss"] == {
        "ready_s": 3.0,
        "upstream_bytes": 901,
        "bytes_per_s": 300.0,
        "peak_rss_bytes": 50,
    }
    assert found["ratio"] == pytest.approx(
        {"hit_read_over_native": 1.0, "hit_load_over_native": 1.1, "hit_ready_over_imports": 2.0}
    )


def test_a_slow_minute_that_both_of_a_pair_saw_does_not_count():
    assert ratio([1.0, 10.0, 10.0], [1.0, 10.0, 10.0]) == 1.0


def test_table_and_plot_say_what_was_not_reached(tmp_path: Path):
    found = measured()
    table = hit_miss_table(found)
    goals = [line for line in table.splitlines() if line.rstrip(" |").endswith(("yes", "no"))]
    missed = [line for line in goals if line.rstrip(" |").endswith(" no")]
    assert len(goals) == 6
    assert ["hit load over native" in missed[0], "upstream bytes of a miss" in missed[1]] == [True, True]
    assert len(missed) == 2
    hit_miss_plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
