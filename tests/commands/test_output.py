"""What is printed where: progress, JSON, one line for an error; and how long a command may take."""

import json
import subprocess
import sys
import time

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG_BYTES
from tests.commands.node import BDNFS, ROOT, Node


def test_plain_progress_is_a_few_lines(node: Node, hub: HubServer) -> None:
    for words in (["mount", "hf://acme/big", node.m], ["prefetch", "hf://acme/tiny"]):
        lines = node.run(*words).err.splitlines()
        assert lines[-1].startswith("bdnfs: whole: ")
        assert len(lines) == 1 or (lines[0].startswith("bdnfs: fetching ") and len(lines) == 2), lines
    node.run("unmount", node.m)


def test_json_progress_parses_line_by_line(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=15e6)
    for words in (["mount", "hf://acme/big", node.m], ["prefetch", "hf://acme/tiny"]):
        lines = [json.loads(line) for line in node.run(*words, "--progress=json").err.splitlines()]
        keys = {"state", "total_bytes", "present_bytes", "files", "files_whole", "tier_bytes", "elapsed_s"}
        assert all(set(line) == keys for line in lines)
        assert lines[-1]["state"] == "whole"
        assert lines[-1]["present_bytes"] == lines[-1]["total_bytes"]
        present = [line["present_bytes"] for line in lines]
        assert present == sorted(present)
    node.run("unmount", node.m)


def test_no_progress_and_a_bar(node: Node, hub: HubServer) -> None:
    assert node.run("prefetch", "hf://acme/tiny", "--progress=none").err == ""
    done = node.run("prefetch", "hf://acme/big", "--progress=bar")
    assert "MiB" in done.err
    assert done.out.count("\n") == 1
    assert (
        "Invalid value for '--progress'"
        in node.run("prefetch", "hf://acme/tiny", "--progress=loud", code=2).err
    )


@pytest.mark.parametrize(
    "words", [["mount"], ["prefetch"], ["run"], ["stage"], ["pin"]], ids=lambda words: words[0]
)
def test_timeout_of_a_fill(node: Node, hub: HubServer, words: list[str]) -> None:
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.configure(upstream={"stall": "1m"})
    ends = {
        "mount": [node.m], "prefetch": [], "run": [node.m, "--", "true"], "stage": [node.m], "pin": ["--until", "1d"]
    }[words[0]]  # fmt: skip
    began = time.monotonic()
    node.refused(7, *words, "hf://acme/big", "--timeout", "1s", *ends, says=["kept"])
    assert time.monotonic() - began < 10
    node.clean()


@pytest.mark.parametrize("words", [["mount"], ["prefetch"], ["plan"], ["lock"]], ids=lambda words: words[0])
def test_timeout_where_upstream_does_not_answer(node: Node, hub: HubServer, words: list[str]) -> None:
    hub.faults.add(match="/api/", times=None, delay_s=60)
    spec = node.spec({"source": "hf://acme/tiny", "mount_location": str(node.m)})
    began = time.monotonic()
    node.refused(7, *words, spec, "--timeout", "500ms", says=["hf://acme/tiny"])
    assert time.monotonic() - began < 8
    node.clean()


@pytest.mark.parametrize("words", [["mount"], ["prefetch"], ["plan"]], ids=lambda words: words[0])
def test_timeout_where_upstream_does_not_list(node: Node, hub: HubServer, words: list[str]) -> None:
    hub.faults.add(match="/tree/", times=None, delay_s=60)
    spec = node.spec({"source": "hf://acme/tiny", "mount_location": str(node.m)})
    began = time.monotonic()
    node.refused(7, *words, spec, "--timeout", "1s")
    assert time.monotonic() - began < 8
    node.clean()


def test_closed_output_is_no_error(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    for unbuffered in ("", "1"):
        environment = node.environment | {"PYTHONUNBUFFERED": unbuffered}
        listing = subprocess.Popen(
            [BDNFS, "cache", "ls"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert listing.stdout is not None
        listing.stdout.close()
        assert listing.stderr is not None
        with listing.stderr:
            assert listing.stderr.read() == b""
        assert listing.wait(60) == 0


def test_a_hit_loads_nothing_heavy(node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    node.run("mount", "hf://acme/tiny", node.m)
    node.run("unmount", node.m)
    code = """
import sys
from bdnfs.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"trio", "urllib3", "rich", "asyncio", "obstore", "fsspec", "pyfuse3", "huggingface_hub", "requests"}
    print(*sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = node.start_program(
        sys.executable, "-c", code, "mount", "hf://acme/tiny", node.m, how={"cwd": ROOT}
    ).wait()
    assert done.err.strip() == ""
    assert node.shown() == "native"
    node.run("unmount", node.m)


def test_errors_are_one_line_on_stderr(node: Node) -> None:
    done = node.run("mount", "hf://acme/none", node.m, "--progress=json", code=5)
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("bdnfs: ")


def test_sizes_in_plan(node: Node) -> None:
    assert node.run("plan", "hf://acme/big", "--json").json["sources"][0]["total_bytes"] == BIG_BYTES
