"""The example job: cold, beside a node that has everything, warm, downloading for itself, on local files."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.hit_miss import ratio
from benchmarks.machine import fsync_latency, machine_facts
from benchmarks.members import Member, open_members
from benchmarks.processes import BenchmarkError, timed
from benchmarks.report import markdown
from benchmarks.workplace import Workplace, open_workplace, serving

_TRAINER = [sys.executable, "-m", "trainer.cli"]
_EXAMPLE, _REPOSITORY = "qwen3-0.6b-bdn-weights", "Qwen/Qwen3-0.6B"
_CHECKPOINTING = "checkpointing_config=definitions.CheckpointingConfig(enabled=True)"
_WEIGHTS = "        weights=weights,\n"
_RUN_TIMEOUT_S = 1800.0
_STAMPED = re.compile(r"(\S+Z) (\{.*\})\s*")
_STEPS_SMALL, _STEPS_CPU, _STEPS_GPU = 4, 7, 40
# The first steps take memory that later ones have: gradients, then the optimizer's state.
_STEPS_FIRST = 2
# Memory that was taken once is kept. Otherwise a step on a CPU gives it back and takes it again, and half of the step
# is the kernel's clearing of pages, which on a virtual machine takes now this long, now that.
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}

# What the run before has freed a virtual machine gives back within seconds, and pays for anew: a script that starts at
# once has up to two seconds less to its first step than one that starts three seconds later.
_SETTLED_S = 10.0

METHOD = {
    "job": f"`trainer init --examples {_EXAMPLE}`, as it is but for checkpoints, which are off; one machine, and a "
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
    "pause": f"{_SETTLED_S:.0f} s before each run (none with --small), so that all begin with memory that is given "
    "to this machine anew",
    "ratio": "medians of the pairs' ratios; one after the other, who is first changes from pair to pair",
    "ratio.compute_held_cold, _cluster_warm, _warm": "compute_held_s over that of download_in_script",
    "ratio.warm_over_local": "to_last_step_s of warm over that of local: all of the same script",
    "ratio.steps_per_s_over_without": "steps per second, the first two left out, of warm over those of local; in all "
    "runs the allocator keeps memory that it has (MALLOC_*), for a step is not to be the kernel's clearing of pages",
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


def job(
    directory: Path,
    *,
    small: bool,
    pairs: int,
    misses: int,
    steps: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure, and return the one JSON object; raise BenchmarkError where something fails.

    directory: keeps the model; everything else in it goes away again
    steps:     of the training, at least 3; None: some for the CPU, more for a GPU
    """
    began_s = time.monotonic()
    raw = Raw()
    say("writing the model, if it isn't there, and serving it")
    with open_workplace(directory, small=small) as workplace, _served(workplace) as bench:
        machine = machine_facts(workplace.home) | {"fsync": fsync_latency(workplace.home)}
        workplace.copy_native()
        gpu = _gpu(workplace)
        words = _script_words(small=small, gpu=gpu is not None, steps=steps)
        bench = replace(bench, words=words, pause_s=0.0 if small else _SETTLED_S)
        for number in range(misses):
            say(f"cold {number + 1} of {misses}")
            workplace.empty_cache()
            _note(bench, raw, "cold", bench.delivered)
        say("a cluster of two nodes, one of which has everything")
        with bench.clustered() as (clustered, node):
            for number in range(misses):
                say(f"cluster-warm {number + 1} of {misses}")
                node.empty()
                with node.serving():
                    _note(bench, raw, "cluster_warm", clustered.delivered)
        runs: list[tuple[str, Callable[[], Run]]] = [
            ("local", bench.local),
            ("warm", bench.delivered),
            ("download_in_script", bench.downloading),
        ]
        for pair in range(pairs):
            say(f"warm, downloading and local: {pair + 1} of {pairs}")
            for name, run in runs[pair % 3 :] + runs[: pair % 3]:
                _note(bench, raw, name, run)
        size_bytes = workplace.size_bytes
    machine |= {"gpu": gpu, "took_s": round(time.monotonic() - began_s, 1)}
    return result(raw, size_bytes, words, machine)


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
        "raw": {
            name: [vars(run) for run in runs]
            for name, runs in (
                ("cold", cold),
                ("cluster_warm", clustered),
                ("warm", warm),
                ("download_in_script", download),
                ("local", local),
            )
        },
    }


def job_table(found: dict[str, Any]) -> str:
    """Return the figures of `job` as Markdown."""
    names = ("cold", "cluster_warm", "warm", "download_in_script", "local")
    keys = {
        "created_s": "CREATED: no compute held",
        "deploying_s": "DEPLOYING",
        "first_step_s": "RUNNING, until the first step",
        "compute_held_s": "compute held until the first step",
        "to_last_step_s": "until the last step",
        "step_s": "a step",
    }
    rows: list[tuple[str, ...]] = [("seconds", *(name.replace("_", " ") for name in names))]
    rows += [(shown, *(f"{found[name][key]:.2f}" for name in names)) for key, shown in keys.items()]
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
        f"{machine['kernel']}, {machine['filesystem']}, load average {machine['load_average']:.1f}; bdnfs at "
        f"{machine['commit']}, {machine['date']}. Cluster-warm: {clustered['peer_bytes']:,} bytes from the other node, "
        f"{clustered['mirror_bytes']:,} from the mirror, {clustered['upstream_bytes']:,} from the Hub.\n"
    )
    return "\n".join(("# The example job\n", said, markdown(rows), markdown(goals)))


# ---- runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bench:
    """The example's files and the trainer's home. words: the script's own, after `python`; pause_s: before each run"""

    workplace: Workplace
    environment: dict[str, str]
    example: Path
    downloading_example: Path
    words: Sequence[str] = ()
    pause_s: float = 0.0

    def delivered(self) -> Run:
        return self._job(self.example, self.words)

    @contextmanager
    def clustered(self) -> Iterator[tuple["_Bench", Member]]:
        """Have the example's weights on a node of a cluster; yield the bench of the other one, and that node.

        The node is to be emptied, and to serve while a job is delivered.
        """
        home, size_bytes = self.workplace.home / "cluster", self.workplace.size_bytes
        free_bytes = shutil.disk_usage(self.workplace.home).free
        if free_bytes < 4 * size_bytes:
            raise BenchmarkError(
                f"{self.workplace.home} has {free_bytes / 1e9:.1f} GB free, and two nodes with a mirror need "
                f"{4 * size_bytes / 1e9:.1f} GB; name another --directory"
            )
        with open_members(home, self.example / "config.py", self.environment, size_bytes) as (_, empty):
            settings = json.loads(Path(self.environment["TRAINER_CONFIG"]).read_text())
            config = home / "trainer.yaml"
            config.write_text(json.dumps({**settings, "bdnfs_config": str(empty.config)}))
            environment = {**empty.environment, "TRAINER_CONFIG": str(config)}
            yield replace(self, environment=environment), empty

    def downloading(self) -> Run:
        words = ["env", "HF_HOME=$BT_SCRATCH_DIR/hf", sys.executable, *self.words, "--model", _REPOSITORY]
        return self._job(self.downloading_example, words, prefix="")

    def local(self) -> Run:
        """Run the script alone, its lines stamped as they come."""
        command = [sys.executable, *self.words, "--model", str(self.workplace.native)]
        began_s = time.time()
        with subprocess.Popen(
            command,
            cwd=self.example,
            env={**self.environment, "DATA": "sample.jsonl"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = [(time.time(), line) for line in process.stdout]
        if process.returncode:
            raise BenchmarkError(f"`{' '.join(command)}` ended with exit code {process.returncode}")
        return _run(began_s, began_s, began_s, _steps(lines))

    def _job(self, example: Path, words: Sequence[str], prefix: str = f"{sys.executable} ") -> Run:
        """Push a job and see it end; return what its record and its log say."""
        command = [*_TRAINER, "push", str(example / "config.py"), "--tail", "--accelerator", "none"]
        command += ["--no-gpu-check", "--entrypoint", prefix + " ".join(words)]
        said = timed(command, self.environment).output
        listed = json.loads(timed([*_TRAINER, "view", "-o", "json"], self.environment).output)
        newest = max(listed, key=lambda each: each["created"])
        found = json.loads(
            timed([*_TRAINER, "view", newest["job_id"], "-o", "json"], self.environment).output
        )
        at_s = {each["state"]: each["at_s"] for each in found["transitions"]}
        if found["state"] != "COMPLETED":
            raise BenchmarkError(
                f"the job {found['job_id']} is {found['state']}: {found['error']}; its log:\n{said}"
            )
        run = _run(at_s["CREATED"], at_s["DEPLOYING"], at_s["RUNNING"], _steps(_stamped(said)))
        tier_bytes = sum((Counter(phase["tier_bytes"]) for phase in found["phases"]), Counter[str]())
        return replace(run, tier_bytes=dict(tier_bytes))


def _run(created_s: float, deploying_s: float, running_s: float, steps: Sequence[tuple[float, float]]) -> Run:
    """Return the figures; steps: when each ended, and how long it took."""
    if len(steps) <= _STEPS_FIRST:
        raise BenchmarkError(
            f"the script printed {len(steps)} steps; {_STEPS_FIRST + 1} or more are needed to tell their speed"
        )
    return Run(
        created_s=deploying_s - created_s,
        deploying_s=running_s - deploying_s,
        first_step_s=steps[0][0] - running_s,
        to_last_step_s=steps[-1][0] - deploying_s,
        step_s=statistics.median(took_s for _, took_s in steps[_STEPS_FIRST:]),
    )


def _steps(lines: Sequence[tuple[float, str]]) -> list[tuple[float, float]]:
    found = []
    for at_s, line in lines:
        if line.startswith('{"step"'):
            found.append((at_s, float(json.loads(line)["seconds"])))
    return found


def _stamped(log: str) -> list[tuple[float, str]]:
    matches = filter(None, (_STAMPED.fullmatch(line) for line in log.splitlines()))
    return [(datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp(), match[2]) for match in matches]


def _note(bench: _Bench, raw: Raw, name: str, run: Callable[[], Run]) -> None:
    time.sleep(bench.pause_s)
    before = bench.workplace.upstream_bytes()
    getattr(raw, name).append(run())
    raw.upstream_bytes.setdefault(name, []).append(bench.workplace.upstream_bytes() - before)


def _medians(runs: Sequence[Run], upstream_bytes: Sequence[int]) -> dict[str, float]:
    keys = ("created_s", "deploying_s", "first_step_s", "compute_held_s", "to_last_step_s", "step_s")
    found = {key: statistics.median(getattr(run, key) for run in runs) for key in keys}
    return found | ({"upstream_bytes": max(upstream_bytes)} if upstream_bytes else {})


# ---- places ------------------------------------------------------------------------------------


@contextmanager
def _served(workplace: Workplace) -> Iterator[_Bench]:
    """Serve the model under its own name, too, and write the example; yield the bench."""
    root = workplace.home / "hub"
    repository = root / _REPOSITORY
    repository.mkdir(parents=True)
    for path in workplace.model.iterdir():
        os.link(path, repository / path.name)
    with serving("hub", [str(root)], workplace.environment) as url:
        trainer_config = workplace.home / "trainer.yaml"
        scratch_bytes = 3 * workplace.size_bytes + (64 << 20)
        trainer_config.write_text(json.dumps({"scratch": scratch_bytes, "slots": 1}))
        environment = {
            **workplace.environment,
            **_ALLOCATOR,
            "HF_ENDPOINT": url,
            "TRAINER_HOME": str(workplace.home / "trainer"),
            "TRAINER_CONFIG": str(trainer_config),
        }
        example, downloading = workplace.home / "example", workplace.home / "downloading"
        timed([*_TRAINER, "init", "--examples", _EXAMPLE, "--target-directory", str(example)], environment)
        config = (example / "config.py").read_text()
        if config.count(_CHECKPOINTING) != 1 or config.count(_WEIGHTS) != 1:
            raise BenchmarkError(
                f"the example {_EXAMPLE} is another one by now; change benchmarks/job.py with it"
            )
        config = config.replace(_CHECKPOINTING, _CHECKPOINTING.replace("True", "False"))
        (example / "config.py").write_text(config)
        shutil.copytree(example, downloading)
        (downloading / "config.py").write_text(config.replace(_WEIGHTS, ""))
        served = replace(workplace, url=url, environment=environment)
        yield _Bench(served, environment, example, downloading)


def _script_words(*, small: bool, gpu: bool, steps: int | None) -> list[str]:
    if small:
        return ["train.py", "--small", "--steps", str(steps or _STEPS_SMALL)]
    if gpu:
        return ["train.py", "--steps", str(steps or _STEPS_GPU)]
    # 0.6 billion parameters on a CPU: a few seconds for a step of this size.
    size = ["--batch-size", "1", "--sequence-length", "64"]
    return ["train.py", "--steps", str(steps or _STEPS_CPU), *size]


def _gpu(workplace: Workplace) -> str | None:
    ask = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
    return timed([sys.executable, "-c", ask], workplace.environment).output.strip() or None
