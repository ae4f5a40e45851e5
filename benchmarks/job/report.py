"""What the runs of the example job come to: the one JSON object, and its table."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.hit_miss import ratio
from benchmarks.report import markdown

EXAMPLE = "qwen3-0.6b-bdn-weights"
KINDS = ("cold", "cluster_warm", "warm", "download_in_script", "local")
# What the run before has freed a virtual machine gives back within seconds, and pays for anew: a script that starts at
# once has up to two seconds less to its first step than one that starts three seconds later.
SETTLED_S = 10.0

METHOD = {
    "job": f"`trainer init --examples {EXAMPLE}`, as it is but for checkpoints, which are off; one machine, and a "
    "mirror for cluster_warm alone",
    "cold": "the node cache empty, the Hub on loopback",
    "warm": "the same job once more",
    "cluster_warm": "the node cache empty, and a `bdnfs node` beside it; another node of the cluster, here "
    "and on loopback, has the whole snapshot, and so has the mirror, a directory. Where there is a mirror the node "
    "fills in DEPLOYING. peer_bytes, mirror_bytes: what came from where",
    "download_in_script": "a job without weights, whose script names the model to from_pretrained; its cache is empty",
    "local": "the same script, no trainer: a process of its own, the model in a plain directory on the same disk",
    "created_s": "from CREATED to DEPLOYING: bringing the weights, no slot and no GPU held",
    "deploying_s": "from DEPLOYING to RUNNING: workspace, scratch, mounts",
    "first_step_s": "from RUNNING to the end of the first step",
    "compute_held_s": "from DEPLOYING to the end of the first step; of `local` from its exec",
    "to_last_step_s": "from there to the end of the last step",
    "pause": f"{SETTLED_S:.0f} s before each run (none with --small), so that all begin with memory that is given "
    "to this machine anew",
    "huge_pages": "with --huge-pages the script's memory, in every run, comes from pages set aside and used once "
    "before the first: a virtual machine gives memory late, and at a price that varies by seconds from run to run",
    "ratio": "medians of the pairs' ratios; one after the other, who is first changes from pair to pair",
    "ratio.compute_held_cold, _cluster_warm, _warm": "compute_held_s over that of download_in_script",
    "ratio.warm_over_local": "to_last_step_s of warm over that of local: all of the same script",
    "ratio.steps_per_s_over_without": "steps per second, the first two left out, of warm over those of local; in all "
    "runs the script's allocator keeps memory that it has (MALLOC_*), for a step is not to be the kernel's clearing "
    "of pages",
}


@dataclass(frozen=True)
class Run:
    """One run, in seconds; created_s and deploying_s are 0 for a script without a trainer.

    tier_bytes: what came to the node, by the tier it came from, as the job's record has it
    """

    created_s: float
    deploying_s: float
    first_step_s: float
    to_last_step_s: float
    step_s: float
    tier_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def compute_held_s(self) -> float:
        return self.deploying_s + self.first_step_s


@dataclass
class Raw:
    """Every run, in the order it was taken."""

    cold: list[Run] = field(default_factory=list)
    cluster_warm: list[Run] = field(default_factory=list)
    warm: list[Run] = field(default_factory=list)
    download_in_script: list[Run] = field(default_factory=list)
    local: list[Run] = field(default_factory=list)
    upstream_bytes: dict[str, list[int]] = field(default_factory=dict)


def result(raw: Raw, size_bytes: int, words: Sequence[str], machine: dict[str, Any]) -> dict[str, Any]:
    """Return the one JSON object."""
    cold, warm, download, local = raw.cold, raw.warm, raw.download_in_script, raw.local
    clustered = raw.cluster_warm
    download_held_s = [run.compute_held_s for run in download]
    # Runs from an empty cache are few: each against the usual download.
    usual_s = statistics.median(download_held_s)
    return {
        "cold": _medians(cold, raw.upstream_bytes.get("cold", [])),
        "cluster_warm": _medians(clustered, raw.upstream_bytes.get("cluster_warm", []))
        | {
            f"{tier}_bytes": max(run.tier_bytes.get(tier, 0) for run in clustered)
            for tier in ("peer", "mirror")
        },
        "warm": _medians(warm, raw.upstream_bytes.get("warm", [])),
        "download_in_script": _medians(download, raw.upstream_bytes.get("download_in_script", [])),
        "local": _medians(local, []),
        "ratio": {
            "compute_held_cold": statistics.median(run.compute_held_s / usual_s for run in cold),
            "compute_held_cluster_warm": statistics.median(run.compute_held_s / usual_s for run in clustered),
            "compute_held_warm": ratio([run.compute_held_s for run in warm], download_held_s),
            "warm_over_local": ratio(
                [run.to_last_step_s for run in warm], [run.to_last_step_s for run in local]
            ),
            "warm_first_step_over_local": ratio(
                [run.compute_held_s for run in warm], [run.compute_held_s for run in local]
            ),
            "steps_per_s_over_without": ratio([run.step_s for run in local], [run.step_s for run in warm]),
        },
        "bytes": size_bytes,
        "pairs": len(warm),
        "misses": len(cold),
        "script": " ".join(words),
        "machine": machine,
        "method": METHOD,
        "page_cache": "hot: every file was written or read not long before",
        "raw": {name: [vars(run) for run in getattr(raw, name)] for name in KINDS},
    }


def job_table(found: dict[str, Any]) -> str:
    """Return the figures of `job` as Markdown."""
    keys = {
        "created_s": "CREATED: no compute held",
        "deploying_s": "DEPLOYING",
        "first_step_s": "RUNNING, until the first step",
        "compute_held_s": "compute held until the first step",
        "to_last_step_s": "until the last step",
        "step_s": "a step",
    }
    rows: list[tuple[str, ...]] = [("seconds", *(name.replace("_", " ") for name in KINDS))]
    rows += [(shown, *(f"{found[name][key]:.2f}" for name in KINDS)) for key, shown in keys.items()]
    goals = [("goal", "", "found", "reached")]
    figures = found["ratio"]
    for name, low, high in (
        ("warm_over_local", 0.0, 1.05),
        ("steps_per_s_over_without", 0.99, 1.01),
        ("compute_held_warm", 0.0, 1.0),
        ("compute_held_cold", 0.0, 1.0),
        ("compute_held_cluster_warm", 0.0, 1.0),
    ):
        bound = f"{low:g} to {high:g}" if low else f"<= {high:g}"
        reached = "yes" if low <= figures[name] <= high else "no"
        goals.append((name.replace("_", " "), bound, f"{figures[name]:.3f}", reached))
    machine, clustered = found["machine"], found["cluster_warm"]
    said = (
        f"{found['bytes']:,} bytes, `{found['script']}`; {found['pairs']} alternating pairs, {found['misses']} from an "
        f"empty cache, medians. {machine['gpu'] or 'no GPU'}; {machine['cpu']}, {machine['cpus']} CPUs, Linux "
        f"{machine['kernel']}, {machine['filesystem']}, load average {machine['load_average']:.1f}; "
        f"{machine['huge_pages_bytes'] / 1e9:.1f} GB of huge pages; bdnfs at "
        f"{machine['commit']}, {machine['date']}. Cluster-warm: {clustered['peer_bytes']:,} bytes from the other node, "
        f"{clustered['mirror_bytes']:,} from the mirror, {clustered['upstream_bytes']:,} from the Hub.\n"
    )
    return "\n".join(("# The example job\n", said, markdown(rows), markdown(goals)))


def _medians(runs: Sequence[Run], upstream_bytes: Sequence[int]) -> dict[str, float]:
    keys = ("created_s", "deploying_s", "first_step_s", "compute_held_s", "to_last_step_s", "step_s")
    found = {key: statistics.median(getattr(run, key) for run in runs) for key in keys}
    return found | ({"upstream_bytes": max(upstream_bytes)} if upstream_bytes else {})
