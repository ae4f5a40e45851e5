"""python -m benchmarks hit-miss | gpu | mirror | storage | job: figures as Markdown, or one JSON object (--json)."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from benchmarks.processes import ROOT, BenchmarkError

F = TypeVar("F", bound=Callable[..., Any])


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
        click.option(
            "--output",
            type=click.Path(path_type=Path, file_okay=False),
            default=ROOT / "benchmarks" / "results",
            help="Where table and plot go. Default: benchmarks/results",
        ),
        click.option("--small", is_flag=True, help="A model of 2.6 MB instead of 1.19 GB."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table."),
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
@click.option("--steps", type=click.IntRange(2), help="Of the training. Default: 3 on a CPU, 40 on a GPU.")
@_place_options
def job(
    steps: int | None, pairs: int, misses: int, as_json: bool, small: bool, output: Path, directory: Path
) -> None:
    """The trainer's example job: cold, warm, downloading in the script, on local files."""
    from benchmarks import job as measuring
    from benchmarks.report import write_report

    found = measuring.job(directory, small=small, pairs=pairs, misses=misses, steps=steps, say=_say)
    table = measuring.job_table(found)
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
