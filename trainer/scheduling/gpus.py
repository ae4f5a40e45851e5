"""The GPUs of this machine: asked of nvidia-smi, or else of the driver's files."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import NoGpuError

_DRIVER = Path("/proc/driver/nvidia/gpus")
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Gpu:
    """index: as nvidia-smi and CUDA_VISIBLE_DEVICES count; name: such as `NVIDIA H100 80GB HBM3`, "" if unknown."""

    index: int
    name: str = ""

    def is_a(self, kind: str) -> bool:
        """Say whether this is a GPU of a kind such as `A100_40GB`; one without a name is of any."""
        if not kind or not self.name:
            return True
        known = set(re.split(r"[^A-Z0-9]+", self.name.upper()))
        # `RTX_PRO_6000` and `A100_40GB`: every word of it; a size as the name writes it, 40GB.
        return all(word in known for word in kind.upper().split("_"))


def machine_gpus(limit: int | None = None) -> tuple[Gpu, ...]:
    """Return this machine's GPUs, the first `limit` of them. A limit above what shows is taken at its word.

    That is for a machine whose GPUs neither nvidia-smi nor the driver's files show.
    """
    found = _from_smi() or _from_driver()
    if limit is None:
        return found
    return tuple(found[:limit]) or tuple(Gpu(index) for index in range(limit))


def gpu_count(limit: int | None = None) -> int:
    """Return how many GPUs jobs may have here; nvidia-smi, which takes a second, is asked only where it must be."""
    if limit is not None:
        return limit
    try:
        return len(os.listdir(_DRIVER))
    except OSError:
        return len(_from_smi())


def check_gpus(here: Sequence[Gpu], wanted: int, kind: str) -> None:
    """Raise NoGpuError where there are fewer than `wanted` GPUs of a kind; naming those that are here."""
    if sum(gpu.is_a(kind) for gpu in here) < wanted:
        found = ", ".join(f"{gpu.name or 'a GPU'} ({gpu.index})" for gpu in here) or "none"
        raise NoGpuError(
            f"the job asks for {wanted} × {kind or 'GPU'}; this machine's GPUs: {found}. Ask for others with "
            "`--accelerator`, or give `--no-gpu-check` to run on what there is"
        )


def _from_smi() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run(
            [program, "--query-gpu=index,name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_smi(done.stdout.splitlines()) if done.returncode == 0 else ()


def parse_smi(lines: Sequence[str]) -> tuple[Gpu, ...]:
    """Return the GPUs in nvidia-smi's lines `0, NVIDIA H100 80GB HBM3`; other lines are left out."""
    found = []
    for line in lines:
        index, comma, name = line.partition(",")
        if comma and index.strip().isdigit():
            found.append(Gpu(int(index), name.strip()))
    return tuple(found)


def _from_driver() -> tuple[Gpu, ...]:
    try:
        files = sorted(_DRIVER.glob("*/information"))
        texts = [file.read_text(errors="replace") for file in files]
    except OSError:
        return ()
    names = [re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in texts]
    return tuple(Gpu(index, name.group(1).strip() if name else "") for index, name in enumerate(names))
