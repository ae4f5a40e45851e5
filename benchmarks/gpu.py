"""from_pretrained onto a GPU: out of what bdnfs delivered, against a plain directory."""

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.hit_miss import ratio
from benchmarks.loading import Loader, open_loader
from benchmarks.machine import fsync_latency, machine_facts
from benchmarks.processes import BenchmarkError, timed
from benchmarks.report import markdown
from benchmarks.workplace import Workplace, open_workplace

_ASK = """
import json, torch
found = torch.cuda.is_available()
print(json.dumps({"name": torch.cuda.get_device_name(0), "bytes": torch.cuda.mem_get_info()[1]} if found else None))
"""


def gpu(
    directory: Path, *, small: bool, pairs: int, device: str, tokens: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, and return the one JSON object; {"skipped": why} where there is no GPU.

    device: what torch calls it; "cpu" tries everything but the speed on a machine without one
    tokens: how many to generate after each load
    """
    accelerator = _accelerator() if device != "cpu" else {"name": "none: the CPU"}
    if isinstance(accelerator, str):
        return {"skipped": accelerator}
    say("writing the model, if it isn't there, and serving it")
    with open_workplace(directory, small=small) as workplace:
        machine = machine_facts(workplace.home) | {"fsync": fsync_latency(workplace.home)}
        # Without FUSE: what is whole in the cache needs none to be mounted.
        timed(workplace.bdnfs("prefetch", workplace.locked), workplace.environment)
        workplace.copy_native()
        before = workplace.upstream_bytes()
        delivered_by, reason = _deliver(workplace)
        say(f"loading from `bdnfs {delivered_by}`, {pairs} pairs")
        with open_loader(workplace.environment, device=device, tokens=tokens) as loader:
            native, hit = _loads(workplace, loader, pairs)
        upstream_bytes = workplace.upstream_bytes() - before
        size_bytes = workplace.size_bytes
    answers = [*native, *hit]
    return {
        "bytes": size_bytes,
        "device": answers[0]["device"],
        "accelerator": accelerator,
        "delivered_by": delivered_by,
        "not_mounted_because": reason,
        "placed_by": answers[0]["placed_by"],
        "hit": _medians(hit) | {"upstream_bytes": upstream_bytes},
        "native": _medians(native),
        "ratio": {"hit_load_over_native": ratio(_each(hit, "load_s"), _each(native, "load_s"))},
        "equal": {
            "weights": all(each["weights"] == answers[0]["weights"] for each in answers),
            "tokens": all(each["tokens"] == answers[0]["tokens"] for each in answers),
        },
        "pairs": pairs,
        "machine": machine,
        "page_cache": {"load_s": "hot: each directory was loaded from once before"},
        "raw": {"native_load_s": _each(native, "load_s"), "hit_load_s": _each(hit, "load_s")},
    }


def gpu_table(found: dict[str, Any]) -> str:
    """Return the figures of `gpu` as Markdown."""
    if "skipped" in found:
        return f"# Loading onto a GPU\n\nskipped: {found['skipped']}\n"
    hit, native = found["hit"], found["native"]
    rows = [
        ("", f"bdnfs {found['delivered_by']}", "plain directory"),
        ("from_pretrained", f"{hit['load_s']:.3f} s", f"{native['load_s']:.3f} s"),
        ("generate", f"{hit['tokens_per_s']:.1f} tokens/s", f"{native['tokens_per_s']:.1f} tokens/s"),
        ("load, of native's", f"{found['ratio']['hit_load_over_native']:.3f} ×", ""),
        ("bytes from upstream", f"{hit['upstream_bytes']:,}", ""),
        ("same weights, same tokens", str(found["equal"]["weights"]), str(found["equal"]["tokens"])),
    ]
    said = f"{found['accelerator']['name']}; {found['bytes']:,} bytes, {found['pairs']} alternating pairs, medians.\n"
    return "\n".join(("# Loading onto a GPU\n", said, markdown(rows)))


def _accelerator() -> dict[str, Any] | str:
    """Return what torch says of the GPU, or in words why there is none to be used."""
    import json

    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        return f"torch can't be asked for a GPU: {lines[-1]}"
    found: dict[str, Any] | None = json.loads(done.stdout.splitlines()[-1])
    return found if found is not None else "torch finds no CUDA GPU on this machine"


def _deliver(workplace: Workplace) -> tuple[str, str | None]:
    """Mount, or stage where nothing can be mounted; return which, and why no mount."""
    try:
        timed(workplace.bdnfs("mount", workplace.locked), workplace.environment)
    except BenchmarkError as error:
        timed(workplace.bdnfs("stage", workplace.locked), workplace.environment)
        return "stage", str(error).splitlines()[-1]
    return "mount", None


def _loads(
    workplace: Workplace, loader: Loader, pairs: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    native, hit = [], []
    for rounds in range(pairs + 1):
        pair = loader.load(workplace.native), loader.load(workplace.mountpoint)
        if rounds:
            native.append(pair[0])
            hit.append(pair[1])
    return native, hit


def _medians(answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: statistics.median(_each(answers, key)) for key in ("load_s", "tokens_per_s")}


def _each(answers: list[dict[str, Any]], key: str) -> list[float]:
    return [answer[key] for answer in answers]
