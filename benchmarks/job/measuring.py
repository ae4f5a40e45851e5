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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.job.report import EXAMPLE, SETTLED_S, Raw, Run, result
from benchmarks.machine import fsync_latency, machine_facts
from benchmarks.members import Member, open_members
from benchmarks.memory import set_aside
from benchmarks.processes import BenchmarkError, timed
from benchmarks.workplace import Workplace, open_workplace, serving

_TRAINER = [sys.executable, "-m", "trainer.cli"]
_REPOSITORY = "Qwen/Qwen3-0.6B"
_CHECKPOINTING = "checkpointing_config=definitions.CheckpointingConfig(enabled=True)"
_WEIGHTS = "        weights=weights,\n"
_STAMPED = re.compile(r"(\S+Z) (\{.*\})\s*")
_STEPS_SMALL, _STEPS_CPU, _STEPS_GPU = 4, 7, 40
# The first steps take memory that later ones have: gradients, then the optimizer's state.
_STEPS_FIRST = 2
# Memory that was taken once is kept. Otherwise a step on a CPU gives it back and takes it again, and half of the step
# is the kernel's clearing of pages, which on a virtual machine takes now this long, now that.
_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}

# Of the model's bytes, which are half a parameter's: parameters, gradients and the optimizer's two, 4 bytes each, make
# 8 times them; the rest is what a step computes with. And of Python and torch.
_MEMORY_TIMES, _MEMORY_BYTES = 10, 1 << 29


def job(
    directory: Path,
    *,
    small: bool,
    pairs: int,
    misses: int,
    steps: int | None,
    huge_pages: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure, and return the one JSON object; raise BenchmarkError where something fails.

    directory:  keeps the model; everything else in it goes away again
    steps:      of the training, at least 3; None: some for the CPU, more for a GPU
    huge_pages: give the script memory that was set aside beforehand
    """
    began_s = time.monotonic()
    raw = Raw()
    say("writing the model, if it isn't there, and serving it")
    with open_workplace(directory, small=small) as workplace, _served(workplace) as bench:
        machine = machine_facts(workplace.home) | {"fsync": fsync_latency(workplace.home)}
        workplace.copy_native()
        size_bytes = workplace.size_bytes
        gpu = _gpu(workplace)
        words = _script_words(small=small, gpu=gpu is not None, steps=steps)
        memory_bytes = _MEMORY_TIMES * size_bytes + _MEMORY_BYTES if huge_pages else 0
        if memory_bytes:
            say(f"setting {memory_bytes / 1e9:.1f} GB of memory aside")
        with set_aside(memory_bytes) as variables:
            allocator = {**_ALLOCATOR, **variables}
            bench = replace(bench, words=words, allocator=allocator, pause_s=0.0 if small else SETTLED_S)
            _measure(bench, raw, pairs, misses, say)
    machine |= {"gpu": gpu, "huge_pages_bytes": memory_bytes, "took_s": round(time.monotonic() - began_s, 1)}
    return result(raw, size_bytes, words, machine)


def _measure(bench: "_Bench", raw: Raw, pairs: int, misses: int, say: Callable[[str], None]) -> None:
    """Take every run, those of the pairs one after the other."""
    for number in range(misses):
        say(f"cold {number + 1} of {misses}")
        bench.workplace.empty_cache()
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


# ---- runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bench:
    """The example's files and the trainer's home.

    words:     the script's own, after `python`
    allocator: variables for the script's memory
    pause_s:   before each run
    """

    workplace: Workplace
    environment: dict[str, str]
    example: Path
    downloading_example: Path
    words: Sequence[str] = ()
    allocator: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0.0

    def delivered(self) -> Run:
        return self._job(self.example)

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
        return self._job(self.downloading_example, ["HF_HOME=$BT_SCRATCH_DIR/hf"], ["--model", _REPOSITORY])

    def local(self) -> Run:
        """Run the script alone, its lines stamped as they come."""
        command = [sys.executable, *self.words, "--model", str(self.workplace.native)]
        began_s = time.time()
        with subprocess.Popen(
            command,
            cwd=self.example,
            env={**self.environment, **self.allocator, "DATA": "sample.jsonl"},
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

    def _job(self, example: Path, variables: Sequence[str] = (), words: Sequence[str] = ()) -> Run:
        """Push a job and see it end; return what its record and its log say. variables, words: more of the script's"""
        variables = [*variables, *(f"{name}={value}" for name, value in self.allocator.items())]
        script = ["env", *variables, sys.executable, *self.words, *words]
        command = [*_TRAINER, "push", str(example / "config.py"), "--tail", "--accelerator", "none"]
        command += ["--no-gpu-check", "--entrypoint", " ".join(script)]
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
            "HF_ENDPOINT": url,
            "TRAINER_HOME": str(workplace.home / "trainer"),
            "TRAINER_CONFIG": str(trainer_config),
        }
        example, downloading = workplace.home / "example", workplace.home / "downloading"
        timed([*_TRAINER, "init", "--examples", EXAMPLE, "--target-directory", str(example)], environment)
        config = (example / "config.py").read_text()
        if config.count(_CHECKPOINTING) != 1 or config.count(_WEIGHTS) != 1:
            raise BenchmarkError(
                f"the example {EXAMPLE} is another one by now; change benchmarks/job with it"
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
