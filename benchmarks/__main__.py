"""python -m benchmarks NAME: figures as Markdown, or as one JSON object with --json."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from benchmarks.processes import ROOT, BenchmarkError

F = TypeVar("F", bound=Callable[..., Any])


_output_option = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=ROOT / "benchmarks" / "results",
    help="Where table and plot go. Default: benchmarks/results",
)
_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of the table."
)


def _options(command: F) -> F:
    pairs = click.option(
        "--pairs", type=click.IntRange(1), default=15, show_default=True, help="Pairs for a ratio."
    )
    return _place_options(pairs(command))


def _place_options(command: F) -> F:
    for option in (
        click.option(
            "--directory",
            type=click.Path(path_type=Path, file_okay=False),
            default=ROOT / ".quickstart",
            help="Where the model is kept, shared with the quickstart. Default: .quickstart",
        ),
        _output_option,
        click.option("--small", is_flag=True, help="A model of 2.6 MB instead of 1.19 GB."),
        _json_option,
    ):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Measure bdnfs from outside, as a user meets it."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)


@main.command("hit-miss")
@click.option(
    "--misses", type=click.IntRange(1), default=3, show_default=True, help="Misses, each from an empty cache."
)
@_options
def hit_miss(misses: int, as_json: bool, small: bool, pairs: int, output: Path, directory: Path) -> None:
    """A miss, a hit and a plain directory: until whole, reading, loading."""
    from benchmarks import hit_miss as measuring
    from benchmarks.report import hit_miss_plot, hit_miss_table, write_report

    found = measuring.hit_miss(directory, small=small, pairs=pairs, misses=misses, say=_say)
    table = hit_miss_table(found)
    write_report(found, output, "hit-miss", table)
    hit_miss_plot(found, output / "hit-miss.png")
    print(json.dumps(found) if as_json else table)


@main.command()
@click.option(
    "--device", default="cuda", show_default=True, help="What torch calls it; cpu only to try this out."
)
@click.option(
    "--tokens", type=click.IntRange(1), default=64, show_default=True, help="To generate after each load."
)
@_options
def gpu(
    device: str, tokens: int, as_json: bool, small: bool, pairs: int, output: Path, directory: Path
) -> None:
    """from_pretrained onto a GPU, from a hit and from a plain directory."""
    from benchmarks import gpu as measuring
    from benchmarks.report import write_report

    found = measuring.gpu(directory, small=small, pairs=pairs, device=device, tokens=tokens, say=_say)
    table = measuring.gpu_table(found)
    write_report(found, output, "gpu", table)
    print(json.dumps(found) if as_json else table)
    if not all(found.get("equal", {}).values()):
        raise BenchmarkError("the model from bdnfs is not the one in the plain directory; please report this")


@main.command("mirror")
@_options
def mirror(as_json: bool, small: bool, pairs: int, output: Path, directory: Path) -> None:
    """An ingest into the mirror against `rclone copy`, between the same two servers; an ingest again."""
    from benchmarks import mirror as measuring
    from benchmarks.report import write_report

    found = measuring.mirror(directory, small=small, pairs=pairs, say=_say)
    table = measuring.mirror_table(found)
    write_report(found, output, "mirror", table)
    print(json.dumps(found) if as_json else table)


@main.command("cluster")
@click.option("--nodes", type=click.IntRange(1, 32), default=4, show_default=True)
@click.option(
    "--rate",
    "rate_mbit",
    type=click.FloatRange(1),
    default=100.0,
    show_default=True,
    help="Mbit/s of a link.",
)
@click.option(
    "--size", "size_mib", type=click.IntRange(4), default=238, show_default=True, help="Of the snapshot, MiB."
)
@click.option("--chunk", "chunk_kib", type=click.IntRange(16), default=480, show_default=True, help="KiB.")
@click.option("--mtu", type=click.IntRange(1280, 9000), default=9000, show_default=True, help="Of the links.")
@click.option("--baselines/--no-baselines", default=True, show_default=True, help="Measure these, too.")
@_output_option
@_json_option
def cluster(
    nodes: int,
    rate_mbit: float,
    size_mib: int,
    chunk_kib: int,
    mtu: int,
    baselines: bool,
    output: Path,
    as_json: bool,
) -> None:
    """N nodes on links of their own fill themselves with one snapshot; everyone from the mirror; libtorrent."""
    from benchmarks.cluster.measuring import cluster as measure
    from benchmarks.cluster.measuring import cluster_plot, cluster_table
    from benchmarks.report import write_report

    found = measure(
        ROOT / ".quickstart",
        nodes=nodes,
        size_bytes=size_mib << 20,
        chunk_bytes=chunk_kib << 10,
        rate_bits=round(rate_mbit * 1e6),
        mtu=mtu,
        baselines=baselines,
        say=_say,
    )
    table, name = cluster_table(found), f"cluster-{nodes}"
    write_report(found, output, name, table)
    cluster_plot(found, output / f"{name}.png")
    print(json.dumps(found) if as_json else table)


@main.command("serving")
@click.option("--pairs", type=click.IntRange(1), default=7, show_default=True, help="Pairs for a ratio.")
@click.option(
    "--seconds", type=click.FloatRange(0.5), default=3.0, show_default=True, help="Of each half of a pair."
)
@click.option(
    "--size", "size_mib", type=click.IntRange(16), default=256, show_default=True, help="Of all chunks, MiB."
)
@click.option(
    "--demand",
    "demand_mb",
    type=click.FloatRange(1),
    default=125.0,
    show_default=True,
    help="Of peers, MB/s.",
)
@click.option("--while-job", type=click.Choice(["throttle", "pause"]), default="throttle", show_default=True)
@_output_option
@_json_option
def serving(
    pairs: int,
    seconds: float,
    size_mib: int,
    demand_mb: float,
    while_job: str,
    output: Path,
    as_json: bool,
) -> None:
    """What one node sends, over plain nginx; a training loop's steps while its node serves, over alone."""
    from benchmarks.report import write_report
    from benchmarks.serving.measuring import serve, serving_table

    found = serve(
        ROOT / ".quickstart",
        pairs=pairs,
        seconds=seconds,
        size_bytes=size_mib << 20,
        demand_bytes=demand_mb * 1e6,
        while_job=while_job,
        say=_say,
    )
    table = serving_table(found)
    write_report(found, output, "serving", table)
    print(json.dumps(found) if as_json else table)


@main.command("simulate")
@click.option("--nodes", type=click.IntRange(2, 5000), default=64, show_default=True)
@click.option(
    "--uplink",
    type=click.FloatRange(0.1),
    default=4.0,
    show_default=True,
    help="The mirror's, in links of a node.",
)
@click.option(
    "--size",
    "size_gb",
    type=click.FloatRange(0.1),
    default=140.0,
    show_default=True,
    help="Of the snapshot, GB.",
)
@click.option(
    "--fetches", type=click.IntRange(1, 512), help="Chunks in flight for a node. Default: as nodes have."
)
@click.option("--compare", is_flag=True, help="Simulate asking in a random order, too.")
@_output_option
@_json_option
def simulate(
    nodes: int,
    uplink: float,
    size_gb: float,
    fetches: int | None,
    compare: bool,
    output: Path,
    as_json: bool,
) -> None:
    """A cluster too large for one machine, with the ring's own code: how near the ideal, how even the uploads."""
    from benchmarks.report import write_report
    from benchmarks.simulate.report import simulation, simulation_plot, simulation_table

    found, outcome = simulation(
        nodes,
        mirror_over_link=uplink,
        size_bytes=round(size_gb * 1e9),
        fetches=fetches,
        compared=compare,
        say=_say,
    )
    table, name = simulation_table(found), f"simulate-{nodes}"
    write_report(found, output, name, table)
    simulation_plot(found, outcome, output / f"{name}.png")


@main.command("storage")
@click.option(
    "--repeats", type=click.IntRange(1), default=5, show_default=True, help="In each way and place."
)
@_place_options
def storage(repeats: int, as_json: bool, small: bool, output: Path, directory: Path) -> None:
    """Write and read 1 GiB (--small: 16 MiB): the node's disk, the training cache, a job's scratch."""
    from benchmarks import storage as measuring
    from benchmarks.report import write_report

    found = measuring.storage(directory, small=small, repeats=repeats, say=_say)
    table = measuring.storage_table(found)
    write_report(found, output, "storage", table)
    print(json.dumps(found) if as_json else table)


@main.command("job")
@click.option(
    "--misses", type=click.IntRange(1), default=3, show_default=True, help="Runs, each from an empty cache."
)
@click.option(
    "--pairs", type=click.IntRange(1), default=5, show_default=True, help="Runs of each other kind."
)
@click.option("--steps", type=click.IntRange(3), help="Of the training. Default: 7 on a CPU, 40 on a GPU.")
@click.option(
    "--huge-pages",
    is_flag=True,
    help="Set the script's memory aside beforehand, 12 GB (root; for virtual machines, which give memory late). What "
    "a `kill -9` leaves set aside goes with `echo 0 > /proc/sys/vm/nr_hugepages`.",
)
@_place_options
def job(
    huge_pages: bool,
    steps: int | None,
    pairs: int,
    misses: int,
    as_json: bool,
    small: bool,
    output: Path,
    directory: Path,
) -> None:
    """The trainer's example job: cold, warm, downloading in the script, on local files."""
    from benchmarks.job.measuring import job as measure
    from benchmarks.job.report import job_table
    from benchmarks.report import write_report

    found = measure(
        directory, small=small, pairs=pairs, misses=misses, steps=steps, huge_pages=huge_pages, say=_say
    )
    table = job_table(found)
    write_report(found, output, "job", table)
    print(json.dumps(found) if as_json else table)


def _say(line: str) -> None:
    print(f"benchmark: {line}", file=sys.stderr, flush=True)


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as error:
        sys.exit(f"benchmark: {error}")
