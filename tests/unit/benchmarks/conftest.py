"""Benchmarks as a user starts them: `python -m benchmarks …` in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def benchmark(*words: str | Path, before: tuple[str, ...] = (), **variables: str) -> dict[str, Any]:
    """Run a benchmark; return the JSON object of its last line."""
    # A login of the user's own must not go to the benchmark's Hub, which would refuse it.
    environment = os.environ | {"HF_TOKEN": "hf_of_the_user", "HF_ENDPOINT": "http://127.0.0.1:9"} | variables
    command = [*before, sys.executable, "-m", "benchmarks", *map(str, words), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
