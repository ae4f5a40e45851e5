"""What a job's storage reads and writes: the node's disk, the training cache, scratch; all from one run."""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import fsync_latency, machine_facts
from benchmarks.processes import BenchmarkError, timed
from benchmarks.report import markdown
from benchmarks.storing import BLOCK_BYTES

PLACES = ("node", "training_cache", "scratch")
WAYS = ("write", "write_direct", "read", "read_direct", "read_cached")
# GB/s, from and to: the table that Baseten publishes for its training jobs (scratch is not in it).
PUBLIC = {
    "node": {"read": (1.7, 2.1), "write": (1.2, 1.8)},
    "training_cache": {"read": (0.47, 1.6), "write": (0.34, 1.0)},
}
METHOD = {
    "node": "a plain directory on the disk that the node cache is on: whole weights are read as such files",
    "training_cache": "a project's cache, on the same disk, its size measured meanwhile as in a job",
    "scratch": "a job's scratch as a job has it: reserved, mounted, with its cap",
    "repeats": "one place after the other, who is first changes; medians; a new file each time, of random bytes",
    "write": f"sequential, {BLOCK_BYTES >> 20} MiB at a time, one stream, by the page cache, and the fsync at its end",
    "write_direct": "the same with O_DIRECT",
    "read": "sequential, the same blocks, the file's pages dropped before (the host may still have them)",
    "read_direct": "the same with O_DIRECT",
    "read_cached": "the same, from the page cache: read once just before",
}
_BYTES, _SMALL_BYTES = 1 << 30, 16 << 20
# The file, three times it reserved for the scratch, and some air.
_SPACE_FACTOR = 5


def storage(directory: Path, *, small: bool, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and return the one JSON object; raise BenchmarkError where something fails.

    directory: on the disk in question; whatever is made in it goes away again
    """
    began_s = time.monotonic()
    size_bytes = _SMALL_BYTES if small else _BYTES
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < _SPACE_FACTOR * size_bytes:
        raise BenchmarkError(
            f"{directory} has {free / 1e9:.1f} GB free and {_SPACE_FACTOR * size_bytes / 1e9:.1f} GB are needed; free "
            "some, name another --directory, or use --small"
        )
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    with tempfile.TemporaryDirectory(prefix="storage.", dir=directory) as home:
        machine = machine_facts(Path(home)) | {"fsync": fsync_latency(Path(home))}
        say(f"writing and reading {size_bytes:,} bytes, {repeats} times in each way and place")
        done = timed(
            [
                *("unshare", *user, "--mount", "--", sys.executable, "-m", "benchmarks.storing"),
                *(home, str(size_bytes), str(repeats)),
            ],
            os.environ,
        )
    machine["took_s"] = round(time.monotonic() - began_s, 1)
    found = json.loads(done.output.splitlines()[-1])
    return result(found["raw"], found["scratch"], size_bytes, repeats, machine)


def result(
    raw: dict[str, dict[str, list[float]]],
    scratch: dict[str, str],
    size_bytes: int,
    repeats: int,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Return the one JSON object: medians, in bytes per second."""
    found: dict[str, Any] = {
        place: {f"{way}_bytes_per_s": statistics.median(raw[place][way]) for way in WAYS} for place in PLACES
    }
    found["scratch"] |= scratch
    found["ratio"] = {
        f"{place}_{way}_over_node": found[place][f"{way}_bytes_per_s"] / found["node"][f"{way}_bytes_per_s"]
        for place in PLACES[1:]
        for way in ("read", "write")
    }
    return {
        **found,
        "bytes": size_bytes,
        "repeats": repeats,
        "public_gb_per_s": PUBLIC,
        "machine": machine,
        "method": METHOD,
        "raw": raw,
    }


def storage_table(found: dict[str, Any]) -> str:
    """Return the figures of `storage` as Markdown."""
    names = {"node": "node storage", "training_cache": "training cache", "scratch": "scratch"}
    rows: list[tuple[str, ...]] = [
        (
            "GB/s",
            "read",
            "read, direct",
            "read, cached",
            "write",
            "write, direct",
            "public read",
            "public write",
        )
    ]
    for place, name in names.items():
        figures = [
            f"{found[place][f'{way}_bytes_per_s'] / 1e9:.2f}"
            for way in ("read", "read_direct", "read_cached", "write", "write_direct")
        ]
        public = PUBLIC.get(place, {})
        ranges = [
            "–".join(f"{value:g}" for value in public[way]) if public else "" for way in ("read", "write")
        ]
        rows.append((name, *figures, *ranges))
    machine, scratch = found["machine"], found["scratch"]
    said = (
        f"{found['bytes']:,} bytes, {found['repeats']} times, medians; sequential, {BLOCK_BYTES >> 20} MiB blocks, one "
        f"stream. Scratch: {scratch['kind']}{': ' if scratch['said'] else ''}{scratch['said']}. {machine['cpu']}, "
        f"{machine['cpus']} CPUs, Linux {machine['kernel']}, {machine['filesystem']}, fsync "
        f"{machine['fsync']['median_s'] * 1e3:.2f} ms, load average {machine['load_average']:.1f}; bdnfs at "
        f"{machine['commit']}, {machine['date']}.\n"
    )
    ways = "".join(f"- {name}: {text}\n" for name, text in found["method"].items())
    return "\n".join(("# A job's storage\n", said, markdown(rows), ways))
