"""N nodes fill themselves with one snapshot: how long the slowest takes, over what their links allow; and baselines."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cluster.place import (
    REPOSITORY,
    ClusterPlace,
    Filled,
    Node,
    configure,
    filled,
    open_cluster_place,
    served,
)
from benchmarks.cluster.torrent import write_torrent
from benchmarks.machine import machine_facts
from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.workplace import remove_tree

CPU_MAX = 0.6
# A piece is so many of BEP 3's blocks.
_BLOCK_BYTES = 16 << 10
# Of ideal, at N nodes.
GOALS = {1: 1.2, 2: 1.2, 4: 1.2, 8: 1.3}
METHOD = {
    "links": "each node, the mirror and the Hub in a network namespace on one bridge, by a veth; tbf both ways",
    "ideal_s": "bytes over the rate of a link, which is the mirror's uplink, too; frames' headers are not taken off",
    "slowest_s": "`bdnfs prefetch` of one pinned source on all nodes at once, from a common start (their interpreters "
    "have imported what they need) to exit, content verified and synced; `bdnfs node` runs on each; caches empty",
    "memory": "caches are in memory, for nodes have a disk each; it is used once beforehand, for a virtual machine "
    "gets it as it is first written",
    "chunks": "scaled down with the data: what counts is how many a node sees",
    "mirror_bytes_over_size": "what the mirror's server sent meanwhile, with the records of the version",
    "upstream_bytes_over_size": "what the Hub sent in all, from the ingest on",
    "upload_share_max": "of what all nodes' links sent, the part of the node that sent most; even is 1 / nodes",
    "cpu_max": "busy part of all CPUs of the machine in the busiest 5 s of the run; over 0.6 it is not the links that "
    "are measured, and valid is false",
    "warm": "one node is emptied, cache and share, and fills itself again from the others",
    "direct": "the same on all nodes without a cluster: everyone from the mirror; the slowest",
    "libtorrent": "libtorrent, each node knows all others, web seed on the mirror's server, TCP, pieces as long as a "
    "chunk (rounded up to 16 KiB); the slowest",
}


def cluster(
    directory: Path,
    *,
    nodes: int,
    size_bytes: int,
    chunk_bytes: int,
    rate_bits: int,
    mtu: int,
    baselines: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure, and return the one JSON object; raise BenchmarkError where something fails."""
    began_s = time.monotonic()
    ideal_s = size_bytes * 8 / rate_bits
    say("writing a snapshot, and ingesting it into a mirror")
    with open_cluster_place(
        directory, nodes=nodes, size_bytes=size_bytes, chunk_bytes=chunk_bytes, rate_bits=rate_bits, mtu=mtu
    ) as place:
        configure(place, place.nodes, place.nodes)
        with served(place, place.nodes):
            say(f"{nodes} nodes from empty caches; ideal {ideal_s:.1f} s")
            cold = filled(place, place.nodes, _prefetch(place))
            say(f"slowest {max(cold.seconds):.1f} s, CPU {cold.cpu_max:.0%} at most")
            upstream_bytes = int(place.stats("hub")["bytes_sent"])
            warm = _warm(place, say) if nodes > 1 else None
        direct = torrent = None
        if baselines:
            say(f"everyone from the mirror, about {nodes * ideal_s:.0f} s")
            direct = _direct(place)
            say(f"slowest {max(direct.seconds):.1f} s; libtorrent")
            torrent = _torrent(place)
            say(f"slowest {max(torrent.seconds):.1f} s")
    found = result(cold, nodes=nodes, size_bytes=size_bytes, chunk_bytes=chunk_bytes, ideal_s=ideal_s)
    found["upstream_bytes_over_size"] = upstream_bytes / size_bytes
    found["baselines"] = {"direct": _slowest(direct), "libtorrent": _slowest(torrent)}
    found["warm"] = (
        {"slowest_s": max(warm.seconds), "mirror_bytes_over_size": warm.mirror_bytes / size_bytes}
        if warm
        else None
    )
    found["link_bits"], found["mtu"], found["method"] = rate_bits, mtu, METHOD
    found["machine"] = machine_facts(ROOT) | {"took_s": round(time.monotonic() - began_s, 1)}
    found["raw"] = {
        name: vars(run)
        for name, run in (("cold", cold), ("warm", warm), ("direct", direct), ("libtorrent", torrent))
        if run is not None
    }
    return found


def result(cold: Filled, *, nodes: int, size_bytes: int, chunk_bytes: int, ideal_s: float) -> dict[str, Any]:
    """Return the figures of the run of the cluster."""
    slowest_s = max(cold.seconds)
    return {
        "nodes": nodes,
        "bytes": size_bytes,
        "chunks": -(-size_bytes // chunk_bytes),
        "mirror_uplink_over_link": 1.0,
        "ideal_s": ideal_s,
        "slowest_s": slowest_s,
        "ratio": slowest_s / ideal_s,
        "upstream_bytes_over_size": None,
        "mirror_bytes_over_size": cold.mirror_bytes / size_bytes,
        "upload_share_max": max(cold.sent_bytes) / sum(cold.sent_bytes),
        "cpu_max": cold.cpu_max,
        "baselines": {"direct": None, "libtorrent": None},
        "valid": cold.cpu_max <= CPU_MAX,
        "cpu_mean": cold.cpu_mean,
    }


def _prefetch(place: ClusterPlace) -> list[str]:
    return ["benchmarks.cluster.starter", "prefetch", place.source, "--progress=plain"]


def _emptied(nodes: Sequence[Node]) -> None:
    for node in nodes:
        remove_tree(node.cache)


def _warm(place: ClusterPlace, say: Callable[[str], None]) -> Filled:
    """Empty the first node, which leaves and comes back as a new machine does, and have it filled again."""
    first = place.nodes[:1]
    assert first[0].serving is not None
    first[0].serving.terminate()
    first[0].serving.wait(60)
    _emptied(first)
    with served(place, first):
        say("one node anew, from the others")
        return filled(place, first, _prefetch(place))


def _direct(place: ClusterPlace) -> Filled:
    _emptied(place.nodes)
    configure(place, place.nodes, [])
    try:
        return filled(place, place.nodes, _prefetch(place))
    finally:
        _emptied(place.nodes)


def _torrent(place: ClusterPlace) -> Filled:
    try:
        import libtorrent  # noqa: F401
    except ImportError:
        raise BenchmarkError("there is no libtorrent to compare with; pip install libtorrent") from None
    (place.home / "buckets" / "seed").symlink_to(place.home / "hub" / Path(REPOSITORY).parent)
    torrent = place.home / "model.torrent"
    piece_bytes = -(-place.chunk_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
    write_torrent(place.home / "hub" / REPOSITORY, piece_bytes, f"{place.mirror}/seed/", torrent)
    addresses = [node.host.address for node in place.nodes]
    words = []
    for node in place.nodes:
        directory = node.home / "torrent"
        directory.mkdir()
        others = [address for address in addresses if address != node.host.address]
        words.append(["benchmarks.cluster.torrent", str(torrent), str(directory), node.host.address, *others])
    found = filled(place, place.nodes, words)
    for node in place.nodes:
        for path in (place.home / "hub" / REPOSITORY).iterdir():
            if (node.home / "torrent" / Path(REPOSITORY).name / path.name).read_bytes() != path.read_bytes():
                raise BenchmarkError(f"libtorrent's {path.name} on {node.host.name} is another file")
        shutil.rmtree(node.home / "torrent")
    return found


def _slowest(run: Filled | None) -> float | None:
    return max(run.seconds) if run else None


def cluster_table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    from benchmarks.report import markdown

    baselines, warm, machine = found["baselines"], found["warm"], found["machine"]
    ideal_s = found["ideal_s"]
    figures = [("", "seconds", "over ideal", "mirror's bytes")]
    figures.append(("ideal", f"{ideal_s:.1f}", "1.00", "1.00 ×"))
    runs = [("bdnfs, slowest of all nodes", "cold", found["slowest_s"])]
    if warm:
        runs.append(("bdnfs, one node anew", "warm", warm["slowest_s"]))
    runs += [
        (label, name, baselines[name])
        for label, name in (("everyone from the mirror", "direct"), ("libtorrent", "libtorrent"))
        if baselines[name] is not None
    ]
    for label, name, seconds in runs:
        sent = found["raw"][name]["mirror_bytes"] / found["bytes"]
        figures.append((label, f"{seconds:.1f}", f"{seconds / ideal_s:.2f}", f"{sent:.2f} ×"))
    goals = [("goal", "", "found", "reached")]
    bound = GOALS.get(found["nodes"], 1.3)
    wanted = [
        ("slowest over ideal", found["ratio"], bound),
        ("mirror's bytes over size", found["mirror_bytes_over_size"], 1.01),
        ("CPU", found["cpu_max"], CPU_MAX),
    ]
    if warm:
        wanted.append(("warm: mirror's bytes over size", warm["mirror_bytes_over_size"], 0.01))
    wanted += [
        (f"over {name}", found["slowest_s"] / baselines[name], 1.0)
        for name in ("direct", "libtorrent")
        if baselines[name] is not None and found["nodes"] > 1
    ]
    goals += [
        (name, f"<= {most:g}", f"{value:.3f}", "yes" if value <= most else "no")
        for name, value, most in wanted
    ]
    said = (
        f"{found['nodes']} nodes, {found['bytes']:,} bytes in {found['chunks']} chunks, links of "
        f"{found['link_bits'] / 1e6:g} Mbit/s (MTU {found['mtu']}), the mirror's the same; upload of the busiest node "
        f"{found['upload_share_max']:.3f} of all. {machine['cpu']}, {machine['cpus']} CPUs, load average "
        f"{machine['load_average']:.1f}; bdnfs at {machine['commit']}, {machine['date']}.\n"
    )
    if not found["valid"]:
        said += "\n**Not valid**: CPUs were so busy that it is not the links that were measured.\n"
    return "\n".join(("# A cluster on links of its own\n", said, markdown(figures), markdown(goals)))


def cluster_plot(found: dict[str, Any], path: Path) -> None:
    """Draw when each node was whole, run by run, and what each sent; write a PNG to path."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (times, sent) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    runs = [name for name in ("cold", "libtorrent", "direct") if name in found["raw"]]
    for place, name in enumerate(runs):
        seconds = found["raw"][name]["seconds"]
        times.plot([place] * len(seconds), seconds, "o", alpha=0.6)
    times.axhline(found["ideal_s"], linestyle="--", linewidth=1, color="gray")
    times.set_xticks(range(len(runs)), ["bdnfs" if name == "cold" else name for name in runs])
    times.set_ylim(bottom=0)
    times.set_title("until a node is whole, s; dashed: ideal", fontsize=10)
    sizes = [each / found["bytes"] for each in found["raw"]["cold"]["sent_bytes"]]
    sent.bar(range(1, len(sizes) + 1), sizes)
    sent.axhline((found["nodes"] - 1) / found["nodes"], linestyle="--", linewidth=1, color="gray")
    sent.set_title("what each node sent, over the snapshot; dashed: even", fontsize=10)
    figure.suptitle(
        f"{found['nodes']} nodes, links of {found['link_bits'] / 1e6:g} Mbit/s: {found['ratio']:.2f} × ideal"
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
