"""What people read of a simulation: one JSON object, a table, and a plot of the balance and of the progress."""

import resource
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine_facts
from benchmarks.processes import ROOT
from benchmarks.report import markdown
from benchmarks.simulate.model import Cluster, Outcome, simulate

RATIO_MAX = 1.1
_FINE_NODES_MAX = 200
METHOD = {
    "real": "who owns a chunk (bdnfs.cluster.owners, 5 % of slack); the scheduler's rules: order, chunks in flight, "
    "one fetch by the owner for all who wait, first come first served, whole chunks forwarded",
    "modelled": "links are full duplex, shared max-min fairly among what flows on them, the network between is never "
    "full; an answer of the mirror begins after mirror_latency_s, an owner's at once; nobody is slow, late or dies; "
    "disks and CPUs keep up",
    "ideal": "bytes over the bandwidth of a link, or of the mirror's uplink where that is less",
    "upload_over_part": "what a node sent to others, over bytes × (N − 1) / N, which each sends if all own the same",
    "random_ratio": "the same with the order random over all chunks: a node's window then fills with chunks that no "
    "owner has yet, so that what the mirror sends helps one node only. By theory 2 − (1 + ln N) / N where uplink and "
    "link are the same",
}


def simulation(
    nodes: int,
    *,
    mirror_over_link: float,
    size_bytes: int,
    say: Callable[[str], None],
    fetches: int | None = None,
    compared: bool = False,
) -> tuple[dict[str, Any], Outcome]:
    """Simulate; return the one JSON object, and what to plot.

    fetches:  chunks in flight for a node, None: as nodes have by default
    compared: simulate the random order, too
    """
    # A chunk of sixteen in flight takes sixteen times as long as one alone: a longer step changes the third digit.
    step = 0.5 if nodes <= _FINE_NODES_MAX else 1.0
    cluster = Cluster(nodes, size_bytes=size_bytes, mirror_over_link=mirror_over_link, step=step)
    if fetches is not None:
        cluster = replace(cluster, in_flight=fetches)
    outcome = simulate(cluster, say)
    ideal_s = cluster.chunks * cluster.chunk_s / min(1.0, mirror_over_link)
    slowest_s = float(outcome.whole_s.max())
    upload = _upload_over_part(cluster, outcome)
    found = {
        "nodes": nodes,
        "bytes": size_bytes,
        "chunks": cluster.chunks,
        "mirror_uplink_over_link": mirror_over_link,
        "ideal_s": ideal_s,
        "slowest_s": slowest_s,
        "ratio": slowest_s / ideal_s,
        "reached": slowest_s / ideal_s <= RATIO_MAX,
        "mirror_bytes_over_size": outcome.mirror_sent / cluster.chunks,
        "upload_over_part": {
            "min": float(upload.min()),
            "median": float(np.median(upload)),
            "p99": float(np.percentile(upload, 99)),
            "max": float(upload.max()),
        },
        "random_ratio": None,
        "model": {name: value for name, value in asdict(cluster).items() if name != "nodes"},
        "took_s": round(outcome.took_s, 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "method": METHOD,
        "machine": machine_facts(ROOT),
    }
    if compared:
        say("the same in a random order")
        other = simulate(Cluster(**(asdict(cluster) | {"order": "random"})), say)
        found["random_ratio"] = float(other.whole_s.max()) / ideal_s
    return found, outcome


def _upload_over_part(cluster: Cluster, outcome: Outcome) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return outcome.sent / (cluster.chunks * (cluster.nodes - 1) / cluster.nodes)


def simulation_table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    upload, model = found["upload_over_part"], found["model"]
    figures = [
        ("", "simulated"),
        ("ideal", f"{found['ideal_s']:.1f} s"),
        ("slowest node", f"{found['slowest_s']:.1f} s"),
        ("over ideal", f"{found['ratio']:.3f}"),
        ("upload over a node's part, least", f"{upload['min']:.3f}"),
        ("  median", f"{upload['median']:.3f}"),
        ("  most", f"{upload['max']:.3f}"),
        ("mirror bytes over size", f"{found['mirror_bytes_over_size']:.2f}"),
    ]
    if found["random_ratio"] is not None:
        figures.append(("over ideal, in a random order", f"{found['random_ratio']:.3f}"))
    goals = [
        ("goal", "", "found", "reached"),
        (
            "slowest over ideal",
            f"<= {RATIO_MAX}",
            f"{found['ratio']:.3f}",
            "yes" if found["reached"] else "no",
        ),
    ]
    said = (
        f"{found['nodes']:,} nodes, {found['bytes'] / 1e9:.0f} GB in {found['chunks']:,} chunks, links of "
        f"{model['link_bits'] / 1e9:g} Gbit/s, the mirror's uplink {found['mirror_uplink_over_link']:g} of them; "
        f"{model['in_flight']} chunks in flight for a node, {model['mirror_in_flight']} for an owner at the mirror, "
        f"{1e3 * model['mirror_latency_s']:.0f} ms until it answers. Simulated in {found['took_s']:.0f} s; "
        f"bdnfs at {found['machine']['commit']}, {found['machine']['date']}.\n"
    )
    return "\n".join(("# A cluster, simulated\n", said, markdown(figures), markdown(goals)))


def simulation_plot(found: dict[str, Any], outcome: Outcome, path: Path) -> None:
    """Draw how even the uploads are, and how far the nodes are over time; write a PNG to path."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (balance, progress) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    nodes, chunks = found["nodes"], found["chunks"]
    part = np.sort(outcome.sent / (chunks * (nodes - 1) / nodes))
    owned = np.sort(outcome.owned / (chunks / nodes))
    balance.plot(np.arange(nodes), part, label="sent to others")
    balance.plot(np.arange(nodes), owned, label="owned", linewidth=1)
    balance.axhline(1, linestyle="--", linewidth=1, color="gray")
    balance.set_title("each node's upload, over an even part", fontsize=10)
    balance.set_xlabel("nodes, from the one that sent least")
    balance.set_ylim(bottom=0)
    balance.legend()
    seconds = [each[0] for each in outcome.progress]
    for place, label in ((1, "fastest"), (2, "mean"), (3, "slowest")):
        progress.plot(seconds, [each[place] for each in outcome.progress], label=label)
    progress.plot([0, found["ideal_s"]], [0, 1], linestyle="--", linewidth=1, color="gray", label="ideal")
    progress.set_title("part of the snapshot that a node has", fontsize=10)
    progress.set_xlabel("s")
    progress.legend()
    figure.suptitle(
        f"{nodes:,} nodes, {found['bytes'] / 1e9:.0f} GB, mirror's uplink {found['mirror_uplink_over_link']:g} links: "
        f"{found['ratio']:.3f} × ideal"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
