"""Loads models, each in a process of its own, forked from one that has imported torch and transformers.

python -m benchmarks.loading [--device cpu|cuda] [--tokens N]

Reads a directory a line on stdin; answers each with {"load_s", …} on a line of stdout. Importing
takes ten times as long as loading, so it is done once; the fork happens before torch has computed
anything, started a thread or touched a device.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, BenchmarkError

PROMPT = "A good carrier asks"


class Loader:
    """The process that has everything imported. Open it with `open_loader`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def load(self, directory: Path) -> dict[str, Any]:
        """Load the model in directory in a fresh fork; return its figures, load_s in seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(directory, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise BenchmarkError("the loading process has ended; what it said is above") from None
        line = self._process.stdout.readline()
        if not line.strip():
            raise BenchmarkError(f"{directory}: the model could not be loaded; what was said is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def open_loader(environment: Mapping[str, str], *, device: str = "cpu", tokens: int = 0) -> Iterator[Loader]:
    """Start the loading process; tokens: how many to generate after each load, 0 for none."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.loading", "--device", device, "--tokens", str(tokens)],
        cwd=ROOT,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for who asks; this one ends with its input.
        start_new_session=True,
    )
    with process:
        try:
            yield Loader(process)
        finally:
            process.terminate()


def load(directory: str, device: str, tokens: int) -> dict[str, Any]:
    """Load and, if asked, generate; import cost and the device's start are not in any figure."""
    import torch
    from transformers import AutoModelForCausalLM

    if device != "cpu":
        torch.zeros(1, device=device)
    # device_map, which puts each tensor where it belongs as it is read, asks for accelerate.
    mapped = device != "cpu" and find_spec("accelerate") is not None
    placing = {"device_map": device} if mapped else {}
    began_s = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True, **placing)
    if device != "cpu":
        model = model.to(device)
        torch.cuda.synchronize()
    found: dict[str, Any] = {
        "load_s": time.perf_counter() - began_s,
        "placed_by": "device_map" if mapped else "to",
    }
    if tokens:
        found |= _generate(model, directory, device, tokens)
    return found


def _generate(model: Any, directory: str, device: str, tokens: int) -> dict[str, Any]:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    prompt = tokenizer(PROMPT, return_tensors="pt").to(device)
    options = {"do_sample": False, "pad_token_id": 0}
    model.generate(
        **prompt, max_new_tokens=4, min_new_tokens=4, **options
    )  # kernels are compiled, caches filled
    began_s = time.perf_counter()
    said = model.generate(**prompt, max_new_tokens=tokens, min_new_tokens=tokens, **options)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began_s
    return {
        "tokens_per_s": tokens / seconds,
        "tokens": said[0].tolist(),
        "weights": [_checksum(each) for each in model.state_dict().values()],
        "device": str(next(model.parameters()).device),
    }


def _checksum(tensor: Any) -> int:
    """Return a sum over the tensor's bits that changes with every bit and with their order."""
    import torch

    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().reshape(-1).view(kinds[tensor.element_size()])
    # In slices: an int64 for each value of the largest tensor would be 1.2 GB at once.
    total = 0
    for at in range(0, bits.numel(), 1 << 24):
        piece = bits[at : at + (1 << 24)].to(torch.int64)
        places = torch.arange(at + 1, at + 1 + piece.numel(), device=piece.device)
        total ^= int((piece * places).sum())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=0)
    options = parser.parse_args()
    import gc

    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.qwen3 import modeling_qwen3  # noqa: F401  # else from_pretrained imports it

    gc.freeze()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                print(json.dumps(load(line.rstrip("\n"), options.device, options.tokens)), flush=True)
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                # Nothing of the parent's is to be flushed or closed a second time.
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        if status:
            print(flush=True)  # who asked waits for a line


if __name__ == "__main__":
    main()
