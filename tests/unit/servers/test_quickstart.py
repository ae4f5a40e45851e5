"""scripts/quickstart as a new user starts it, small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_quickstart_mounts_a_miss_then_a_hit_and_leaves_nothing(tmp_path: Path):
    command = [sys.executable, str(ROOT / "scripts/quickstart.py"), "--small", "--directory", str(tmp_path)]
    # A login of the user's own must not go to the quickstart's Hub, which would refuse it.
    environment = os.environ | {"HF_TOKEN": "hf_of_the_user", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$ bdnfs mount hf://local/Qwen3-0.6B-random@main" in done.stdout
    table = {line[:22].strip(): line[22:].split() for line in done.stdout.splitlines()[-6:]}
    assert table[""] == ["miss", "hit"]
    assert table["bytes from upstream"][1] == "0"
    assert table["of the model's"] == ["1.00", "×", "0.00", "×"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
