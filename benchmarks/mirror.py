"""Ingest into the mirror against a plain copy of the same files, between the same two servers, in one run."""

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.hit_miss import ratio
from benchmarks.machine import machine_facts
from benchmarks.processes import BenchmarkError, timed
from benchmarks.two_servers import Place, chosen_store, open_place, own_rates
from benchmarks.workplace import open_workplace

# rclone as people run it, and with as many requests at once as bdnfs makes.
COPIES = {
    "defaults": [],
    "16 at once": ["--transfers", "16", "--s3-upload-concurrency", "16"],
}
_COPY_FLAGS = ["--config", "", "--s3-no-check-bucket", "--retries", "1"]
METHOD = {
    "pairs": "one after the other: ingest, copy, copy, …, who is first changes; a ratio is the median of the pairs'",
    "ingest": "`bdnfs mirror SPEC`, whole process from exec to exit, empty mirror, empty node cache; blake3 included",
    "copy": f"`rclone copy {' '.join(_COPY_FLAGS)}`, whole process, into an empty bucket; the faster of two settings "
    "counts (as the medians say): "
    + "; ".join(f"{name}: {' '.join(flags) or 'no flags'}" for name, flags in COPIES.items()),
    "rerun": "the same `bdnfs mirror SPEC` again after each ingest",
    "rerun_bytes": "content that left the upstream's server in all reruns, as that server counted",
    "peak_rss_bytes": "of bdnfs and what it waited for, as wait4 says (ru_maxrss); largest repeat",
    "servers": "benchmarks.servers.buckets, one process each: no signatures checked, nothing hashed, sendfile; "
    "plain http. What they do in a loop of 8 MiB requests on one connection: machine.servers",
    "cpu_s": "user and system time of one ingest, one copy, and of each server meanwhile; medians",
}


@dataclass
class Raw:
    """Every single measurement, in the order it was taken: seconds and bytes; cpu as (client, upstream, mirror)."""

    ingest_s: list[float] = field(default_factory=list)
    ingest_cpu_s: list[list[float]] = field(default_factory=list)
    ingest_rss_bytes: list[int] = field(default_factory=list)
    ingest_upstream_bytes: list[int] = field(default_factory=list)
    rerun_s: list[float] = field(default_factory=list)
    rerun_upstream_bytes: list[int] = field(default_factory=list)
    rerun_mirror_bytes: list[int] = field(default_factory=list)
    copy_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in COPIES})
    copy_cpu_s: dict[str, list[list[float]]] = field(default_factory=lambda: {name: [] for name in COPIES})
    copy_rss_bytes: list[int] = field(default_factory=list)


def mirror(directory: Path, *, small: bool, pairs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, and return the one JSON object; raise BenchmarkError where something fails.

    directory: keeps the model; everything else in it goes away again.
    """
    began_s = time.monotonic()
    if shutil.which("rclone") is None:
        raise BenchmarkError(
            "there is no rclone to compare with; run scripts/setup, or apt-get install rclone"
        )
    raw = Raw()
    say("writing the model, if it isn't there, and starting two servers")
    with open_workplace(directory, small=small) as workplace:
        size_bytes = workplace.size_bytes
        store = chosen_store(workplace.home, size_bytes)
        machine = machine_facts(store) | {"store": str(store), "rclone": _rclone_version()}
        with open_place(workplace, store) as place:
            machine["servers"] = own_rates(place)
            if not small:
                say("once around, for the caches of the kernel")
                _round(place, Raw(), 0)
            for number in range(pairs):
                say(f"ingest, again, and copies: {number + 1} of {pairs}")
                _round(place, raw, number)
            say("verifying what the last ingest brought")
            timed(place.bdnfs("verify"), place.environment)
    machine["took_s"] = round(time.monotonic() - began_s, 1)
    return result(raw, size_bytes, machine)


def result(raw: Raw, size_bytes: int, machine: dict[str, Any]) -> dict[str, Any]:
    """Return the figures as `mirror --json` prints them."""
    median = statistics.median
    chosen = min(raw.copy_s, key=lambda name: median(raw.copy_s[name]))
    return {
        "bytes": size_bytes,
        "ingest_bytes_per_s": size_bytes / median(raw.ingest_s),
        "rerun_s": median(raw.rerun_s),
        "rerun_bytes": sum(raw.rerun_upstream_bytes),
        "copy_bytes_per_s": size_bytes / median(raw.copy_s[chosen]),
        # Rates: so the copy's seconds over the ingest's.
        "ratio": {"ingest_over_copy": ratio(raw.copy_s[chosen], raw.ingest_s)},
        "peak_rss_bytes": max(raw.ingest_rss_bytes),
        "copy": chosen,
        "ingest_upstream_bytes": max(raw.ingest_upstream_bytes),
        "rerun_mirror_bytes": max(raw.rerun_mirror_bytes),
        "copy_peak_rss_bytes": max(raw.copy_rss_bytes),
        "cpu_s": {"ingest": _each(raw.ingest_cpu_s), "copy": _each(raw.copy_cpu_s[chosen])},
        "pairs": len(raw.ingest_s),
        "machine": machine,
        "method": METHOD,
        "raw": vars(raw),
    }


def mirror_table(found: dict[str, Any]) -> str:
    """Return the figures of `mirror` as Markdown."""
    from benchmarks.report import markdown

    cpu, machine = found["cpu_s"], found["machine"]
    figures = [("", "ingest", f"copy ({found['copy']})")]
    figures.append(
        (
            "content",
            f"{found['ingest_bytes_per_s'] / 1e6:.0f} MB/s",
            f"{found['copy_bytes_per_s'] / 1e6:.0f} MB/s",
        )
    )
    figures += [
        (f"CPU, {who}", f"{cpu['ingest'][who]:.2f} s", f"{cpu['copy'][who]:.2f} s") for who in cpu["ingest"]
    ]
    figures += [
        (
            "peak memory",
            f"{found['peak_rss_bytes'] / 1e6:.0f} MB",
            f"{found['copy_peak_rss_bytes'] / 1e6:.0f} MB",
        ),
        ("again", f"{found['rerun_s']:.2f} s", ""),
    ]
    goals = [("goal", "", "found", "reached")]
    for name, sign, bound, value in (
        ("ingest over copy", ">=", 0.9, found["ratio"]["ingest_over_copy"]),
        ("peak memory of an ingest, MB", "<=", 600.0, found["peak_rss_bytes"] / 1e6),
        ("upstream bytes of a rerun", "<=", 0.0, found["rerun_bytes"]),
    ):
        reached = value >= bound if sign == ">=" else value <= bound
        goals.append((name, f"{sign} {bound:g}", f"{value:.4g}", "yes" if reached else "no"))
    said = (
        f"{found['bytes']:,} bytes; {found['pairs']} alternating pairs, medians; {machine['rclone']}. "
        f"{machine['cpu']}, {machine['cpus']} CPUs, stored in {machine['store']} ({machine['filesystem']}), "
        f"load average {machine['load_average']:.1f}; bdnfs at {machine['commit']}, {machine['date']}.\n"
    )
    return "\n".join(
        ("# Ingest into the mirror, and a plain copy\n", said, markdown(figures), markdown(goals))
    )


def _round(place: Place, raw: Raw, number: int) -> None:
    steps: list[Callable[[], None]] = [lambda: _ingest(place, raw)]
    steps += [lambda name=name: _copy(place, raw, name) for name in COPIES]  # type: ignore[misc]
    first = number % len(steps)
    for step in steps[first:] + steps[:first]:
        step()


def _ingest(place: Place, raw: Raw) -> None:
    place.mirror.empty("copy")
    place.mirror.empty("mirror")
    place.workplace.empty_cache()
    first = place.measured(place.bdnfs(place.spec))
    again = place.measured(place.bdnfs(place.spec))
    if first.mirror_bytes < place.workplace.size_bytes:
        raise BenchmarkError(f"an ingest brought {first.mirror_bytes} bytes, not all of the model")
    raw.ingest_s.append(first.seconds)
    raw.ingest_cpu_s.append(first.cpu_s)
    raw.ingest_rss_bytes.append(first.peak_rss_bytes)
    raw.ingest_upstream_bytes.append(first.upstream_bytes)
    raw.rerun_s.append(again.seconds)
    raw.rerun_upstream_bytes.append(again.upstream_bytes)
    raw.rerun_mirror_bytes.append(again.mirror_bytes)


def _copy(place: Place, raw: Raw, name: str) -> None:
    place.mirror.empty("copy")
    command = ["rclone", "copy", "upstream:weights/model", "mirror:copy", *_COPY_FLAGS, *COPIES[name]]
    copied = place.measured(command)
    if copied.mirror_bytes < place.workplace.size_bytes:
        raise BenchmarkError(f"a copy brought {copied.mirror_bytes} bytes, not all of the model")
    raw.copy_s[name].append(copied.seconds)
    raw.copy_cpu_s[name].append(copied.cpu_s)
    raw.copy_rss_bytes.append(copied.peak_rss_bytes)


def _rclone_version() -> str:
    done = subprocess.run(["rclone", "version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def _each(cpu_s: list[list[float]]) -> dict[str, float]:
    return {
        who: statistics.median(each[place] for each in cpu_s)
        for place, who in enumerate(("client", "upstream", "mirror"))
    }
