"""The client that stands for peers counts what it got and what it was refused; the table says what was reached."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.servers.buckets import BucketServer
from benchmarks.serving.measuring import serving_table

SIZE = 300_000


def asked(tmp_path: Path, url: str, paths: list[str], *words: str) -> dict[str, Any]:
    listed = tmp_path / "paths.json"
    listed.write_text(json.dumps([[path, SIZE] for path in paths]))
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving.client",
        url,
        str(listed),
        "--seconds",
        "0.2",
        *words,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return dict(json.loads(done.stdout))


def test_whole_answers_count_and_others_are_refusals(tmp_path: Path) -> None:
    (tmp_path / "root" / "bucket").mkdir(parents=True)
    (tmp_path / "root" / "bucket" / "chunk").write_bytes(bytes(SIZE))
    with BucketServer(tmp_path / "root") as server:
        found = asked(tmp_path, server.url, ["/bucket/chunk"])
        assert found["bytes"] >= SIZE
        assert found["bytes"] % SIZE == 0
        assert found["refused"] == 0
        found = asked(tmp_path, server.url, ["/bucket/none"], "--connections", "1")
        assert found["bytes"] == 0
        assert found["refused"] >= 1
        # No more than it is told to want: a chunk in a fifth of a second, and the time is up.
        found = asked(tmp_path, server.url, ["/bucket/chunk"], "--rate", "1500000", "--connections", "1")
        assert found["bytes"] <= 3 * SIZE


def test_the_table_says_what_was_reached() -> None:
    found = {
        "plain_bytes_per_s": 2e9,
        "node_bytes_per_s": 1.7e9,
        "without_nginx_bytes_per_s": 1e9,
        "ratio": {"node_over_plain": 0.85, "steps_serving_over_alone": 0.98},
        "steps_per_s": {"alone": 100.0, "serving": 98.0},
        "served_bytes_per_s": 6e7,
        "while_job": "throttle",
        "pairs": 3,
        "machine": {"cpu": "a", "cpus": 2, "load_average": 0.1, "commit": "c", "date": "d"},
    }
    table = serving_table(found)
    assert "| node over plain nginx          | >= 0.8  | 0.850 | yes     |" in table
    assert "| steps while serving over alone | >= 0.99 | 0.980 | no      |" in table
