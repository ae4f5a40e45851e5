"""A miss against a hit against a plain directory: the figures, all from one run."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.loading import Loader, open_loader
from benchmarks.machine import fsync_latency, machine_facts
from benchmarks.processes import BenchmarkError, adopt_orphans, children, reap, timed
from benchmarks.reading import drop_pages
from benchmarks.workplace import WEIGHTS, Workplace, open_workplace

IMPORTS = [sys.executable, "-c", "import click, lmdb, msgspec, yaml"]
_DAEMON_END_S = 60.0

METHOD = {
    "pairs": "one after the other: native, hit, native, hit, …; a ratio is the median of the pairs' ratios",
    "ready_s": "whole process, from exec to exit; unmounted in between, which is not timed",
    "hit.ready_s": "`bdnfs mount spec.yaml` beside its spec.lock: no question to upstream",
    "hit.branch_ready_s": "the same without spec.lock: one question to the Hub on loopback",
    "hit.pinned_ready_s": "`bdnfs mount hf://org/repo@<commit> DIR`, no file",
    "hit.upstream_bytes": "over every mount, read and load of a hit together",
    "read_bytes_per_s": "model.safetensors, sequential 1 MiB preads, a new process each time; who of a pair is "
    "first changes from pair to pair",
    "load_s": "AutoModelForCausalLM.from_pretrained alone, in a process forked from one that had imported torch",
    "native": "the same bytes, copied to a plain directory on the same disk",
    "peak_rss_bytes": "the larger of the command and its daemon, each as wait4 says (ru_maxrss); largest repeat",
}
PAGE_CACHE = {
    "miss": "the upstream's file hot; the node cache removed before, and everything synced",
    "hit.ready_s": "hot: index, record and tree were used just before",
    "read_bytes_per_s": "hot: both files dropped and read from the disk anew for each pair",
    "load_s": "hot, as the last reads left it",
    "cold_read_bytes_per_s": "cold: pages dropped (posix_fadvise) before each; the host may still have them",
}


@dataclass
class Raw:
    """Every single measurement, in the order it was taken; seconds and bytes."""

    miss_ready_s: list[float] = field(default_factory=list)
    miss_upstream_bytes: list[int] = field(default_factory=list)
    miss_command_rss_bytes: list[int] = field(default_factory=list)
    miss_daemon_rss_bytes: list[int] = field(default_factory=list)
    imports_s: list[float] = field(default_factory=list)
    locked_ready_s: list[float] = field(default_factory=list)
    branch_ready_s: list[float] = field(default_factory=list)
    pinned_ready_s: list[float] = field(default_factory=list)
    native_read_bytes_per_s: list[float] = field(default_factory=list)
    hit_read_bytes_per_s: list[float] = field(default_factory=list)
    native_cold_read_bytes_per_s: list[float] = field(default_factory=list)
    hit_cold_read_bytes_per_s: list[float] = field(default_factory=list)
    native_load_s: list[float] = field(default_factory=list)
    hit_load_s: list[float] = field(default_factory=list)


def hit_miss(
    directory: Path, *, small: bool, pairs: int, misses: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, and return the one JSON object; raise BenchmarkError where something fails.

    directory: keeps the model; everything else in it goes away again.
    """
    adopt_orphans()
    began_s = time.monotonic()
    raw = Raw()
    say("writing the model, if it isn't there, and serving it")
    with open_workplace(directory, small=small) as workplace:
        machine = machine_facts(workplace.home) | {"fsync": fsync_latency(workplace.home)}
        for number in range(misses):
            say(f"miss {number + 1} of {misses}")
            _miss(workplace, raw)
        workplace.copy_native()
        before = workplace.upstream_bytes()
        say(f"mounting again, {pairs} times each way")
        _hits(workplace, raw, pairs)
        timed(workplace.bdnfs("mount", workplace.locked), workplace.environment)
        say(f"reading, {pairs} pairs")
        _reads(workplace, raw, pairs)
        say(f"loading, {pairs} pairs")
        with open_loader(workplace.environment) as loader:
            _loads(workplace, raw, pairs, loader)
        unmount(workplace)
        upstream_bytes = workplace.upstream_bytes() - before
        size_bytes = workplace.size_bytes
    machine["took_s"] = round(time.monotonic() - began_s, 1)
    return result(raw, size_bytes, upstream_bytes, pairs, machine)


def unmount(workplace: Workplace) -> None:
    timed(workplace.bdnfs("unmount", workplace.mountpoint), workplace.environment)


def _miss(workplace: Workplace, raw: Raw) -> None:
    workplace.empty_cache()
    before, known = workplace.upstream_bytes(), children()
    command = timed(workplace.bdnfs("mount", workplace.branch), workplace.environment)
    # The daemon is ours now, and ends by itself after the hand-off. One that has ended before its command was waited
    # for by that: then the command's figure is the larger one of both.
    daemons = [reap(pid, _DAEMON_END_S) for pid in children() - known]
    raw.miss_ready_s.append(command.seconds)
    raw.miss_command_rss_bytes.append(command.peak_rss_bytes)
    raw.miss_daemon_rss_bytes.append(max(daemons, default=0))
    raw.miss_upstream_bytes.append(workplace.upstream_bytes() - before)
    unmount(workplace)


def _hits(workplace: Workplace, raw: Raw, pairs: int) -> None:
    pinned = workplace.source_at(workplace.commit())
    ways = (
        (raw.locked_ready_s, workplace.bdnfs("mount", workplace.locked)),
        (raw.branch_ready_s, workplace.bdnfs("mount", workplace.branch)),
        (raw.pinned_ready_s, workplace.bdnfs("mount", pinned, workplace.mountpoint)),
    )
    # Once around for the caches of the kernel and of Python.
    for rounds in range(pairs + 1):
        imports_s = timed(IMPORTS, workplace.environment).seconds
        if rounds:
            raw.imports_s.append(imports_s)
        for into, command in ways:
            seconds = timed(command, workplace.environment).seconds
            unmount(workplace)
            if rounds:
                into.append(seconds)


def _reads(workplace: Workplace, raw: Raw, pairs: int) -> None:
    native = workplace.native, raw.native_cold_read_bytes_per_s, raw.native_read_bytes_per_s
    hit = workplace.mountpoint, raw.hit_cold_read_bytes_per_s, raw.hit_read_bytes_per_s
    # Two plain copies of one file differ by up to 20 % for as long as each has the memory it has. So
    # both are dropped before each pair, and who gets which memory, and who is read first, changes.
    for number in range(pairs):
        for directory, _, _ in (native, hit):
            drop_pages(directory / WEIGHTS)
        for directory, cold, _ in (native, hit) if number % 2 == 0 else (hit, native):
            cold.append(_read(workplace, directory, ["--once"]))
        for directory, _, hot in (native, hit) if number // 2 % 2 == 0 else (hit, native):
            hot.append(_read(workplace, directory, []))


def _read(workplace: Workplace, directory: Path, flags: list[str]) -> float:
    command = [sys.executable, "-m", "benchmarks.reading", str(directory / WEIGHTS), *flags]
    found = json.loads(timed(command, workplace.environment).output)
    if found["bytes"] % (directory / WEIGHTS).stat().st_size:
        raise BenchmarkError(f"{directory / WEIGHTS}: {found['bytes']} bytes were read, not all of it")
    return float(found["bytes"] / found["seconds"])


def _loads(workplace: Workplace, raw: Raw, pairs: int, loader: Loader) -> None:
    # Once each for what transformers itself keeps.
    for rounds in range(pairs + 1):
        native_s = loader.load(workplace.native)["load_s"]
        hit_s = loader.load(workplace.mountpoint)["load_s"]
        if rounds:
            raw.native_load_s.append(native_s)
            raw.hit_load_s.append(hit_s)


def result(
    raw: Raw, size_bytes: int, hit_upstream_bytes: int, pairs: int, machine: dict[str, Any]
) -> dict[str, Any]:
    """Return the figures as `hit-miss --json` prints them."""
    median = statistics.median
    miss_s = median(raw.miss_ready_s)
    return {
        "bytes": size_bytes,
        "miss": {
            "ready_s": miss_s,
            "upstream_bytes": max(raw.miss_upstream_bytes),
            "bytes_per_s": size_bytes / miss_s,
            "peak_rss_bytes": max(raw.miss_command_rss_bytes + raw.miss_daemon_rss_bytes),
        },
        "hit": {
            "ready_s": median(raw.locked_ready_s),
            "branch_ready_s": median(raw.branch_ready_s),
            "pinned_ready_s": median(raw.pinned_ready_s),
            "upstream_bytes": hit_upstream_bytes,
            "read_bytes_per_s": median(raw.hit_read_bytes_per_s),
            "cold_read_bytes_per_s": median(raw.hit_cold_read_bytes_per_s),
            "load_s": median(raw.hit_load_s),
        },
        "native": {
            "read_bytes_per_s": median(raw.native_read_bytes_per_s),
            "cold_read_bytes_per_s": median(raw.native_cold_read_bytes_per_s),
            "load_s": median(raw.native_load_s),
        },
        "imports": {"ready_s": median(raw.imports_s)},
        "ratio": {
            "hit_read_over_native": ratio(raw.hit_read_bytes_per_s, raw.native_read_bytes_per_s),
            "hit_load_over_native": ratio(raw.hit_load_s, raw.native_load_s),
            "hit_ready_over_imports": ratio(raw.locked_ready_s, raw.imports_s),
        },
        "pairs": pairs,
        "misses": len(raw.miss_ready_s),
        "machine": machine,
        "method": METHOD,
        "page_cache": PAGE_CACHE,
        "raw": vars(raw),
    }


def ratio(ours: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the pairs' ratios: what disturbs a whole minute disturbs both of a pair."""
    return statistics.median(one / other for one, other in zip(ours, base, strict=True))
