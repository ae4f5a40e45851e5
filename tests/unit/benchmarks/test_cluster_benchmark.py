"""What the cluster benchmark and the simulation make of what they measured, and the simulation's own rules."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cluster.measuring import cluster_plot, cluster_table, result
from benchmarks.cluster.place import Filled, all_ended
from benchmarks.simulate.model import Cluster, _orders, _shared, simulate
from benchmarks.simulate.report import simulation, simulation_plot, simulation_table

CHUNK = 8 << 20
FIELDS = [
    "nodes",
    "bytes",
    "chunks",
    "mirror_uplink_over_link",
    "ideal_s",
    "slowest_s",
    "ratio",
    "upstream_bytes_over_size",
    "mirror_bytes_over_size",
    "upload_share_max",
    "cpu_max",
    "baselines",
]


def run(cpu: float = 0.4) -> Filled:
    return Filled([10.5, 11.0], cpu, cpu, [300, 500], [900, 900], 0, 1001, ["", ""])


def found(cpu: float = 0.4) -> dict[str, Any]:
    measured = result(run(cpu), nodes=2, size_bytes=1000, chunk_bytes=3, ideal_s=10.0)
    measured |= {"upstream_bytes_over_size": 1.0, "link_bits": 800, "mtu": 9000}
    measured["baselines"] = {"direct": 20.0, "libtorrent": 12.0}
    measured["warm"] = {"slowest_s": 10.1, "mirror_bytes_over_size": 0.0}
    machine = {"cpu": "a", "cpus": 2, "load_average": 0.1, "commit": "c", "date": "d"}
    raw = {name: vars(run()) for name in ("cold", "warm", "direct", "libtorrent")}
    return measured | {"machine": machine, "raw": raw}


def test_the_figures_are_those_that_were_asked_for() -> None:
    measured = found()
    assert set(FIELDS) <= set(measured)
    assert (measured["chunks"], measured["slowest_s"], measured["ratio"]) == (334, 11.0, 1.1)
    assert (measured["mirror_bytes_over_size"], measured["upload_share_max"]) == (1.001, 0.625)
    assert measured["valid"]
    json.dumps(measured)


def test_a_run_on_busy_cpus_is_marked(tmp_path: Path) -> None:
    assert "Not valid" not in cluster_table(found())
    busy = found(0.61)
    assert not busy["valid"]
    assert "Not valid" in cluster_table(busy)
    cluster_plot(busy, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_order_has_every_chunk_once_and_each_owners_in_the_order_all_share() -> None:
    owner = np.random.default_rng(1).integers(0, 7, 300)
    orders = _orders(owner, 7, "interleaved", np.random.default_rng(2))
    assert len({tuple(order) for order in orders}) == 7
    for order in orders:
        assert sorted(order) == list(range(300))
        for node in range(7):
            assert list(order[owner[order] == node]) == list(np.flatnonzero(owner == node))


def test_links_are_shared_out_and_no_more() -> None:
    # One sends to two, one of whom the mirror (node 3) sends to as well.
    rates = _shared(np.array([0, 0, 3]), np.array([1, 2, 1]), 3, 0.25)
    assert rates == pytest.approx([0.5, 0.5, 0.25])


@pytest.mark.parametrize("nodes", [2, 5])
def test_every_node_gets_everything_and_the_mirror_sends_it_once(nodes: int) -> None:
    cluster = Cluster(nodes, size_bytes=60 * CHUNK, mirror_latency_s=0.0, step=0.25)
    outcome = simulate(cluster)
    assert outcome.mirror_sent == 60
    assert (outcome.sent == outcome.owned * (nodes - 1)).all()
    # Nobody is faster than light.
    assert (outcome.whole_s >= 60 * cluster.chunk_s * 0.99).all()


def test_a_random_order_takes_what_theory_says_and_the_shared_one_less() -> None:
    ratios = {}
    for order in ("random", "interleaved"):
        cluster = Cluster(4, size_bytes=200 * CHUNK, mirror_latency_s=0.0, step=0.25, order=order)
        ratios[order] = simulate(cluster).whole_s.max() / (200 * cluster.chunk_s)
    assert ratios["random"] == pytest.approx(2 - (1 + np.log(4)) / 4, abs=0.1)
    assert ratios["interleaved"] < 1.2


def test_the_report_of_a_simulation(tmp_path: Path) -> None:
    figures, outcome = simulation(
        3, mirror_over_link=1.0, size_bytes=60 * CHUNK, compared=True, say=lambda _: None
    )
    json.dumps(figures)
    assert figures["chunks"] == 60
    assert figures["random_ratio"] > 1
    assert "in a random order" in simulation_table(figures)
    simulation_plot(figures, outcome, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


# Writes a piece once the one before it has been read.
PIECES = """
import array, fcntl, os, termios
for piece in (b"who", b"le", b"\\n"):
    os.write(1, piece)
    left = array.array("i", [1])
    while left[0]:
        fcntl.ioctl(1, termios.FIONREAD, left)
input()
"""


def test_a_line_that_comes_in_pieces_ends_a_run() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PIECES], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert len(all_ended([process], [], time.monotonic())) == 1
