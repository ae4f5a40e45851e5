"""`bdnfs` with a config.py of a training job, and with a truss config.yaml, as SPEC."""

from pathlib import Path

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import TINY
from tests.commands.node import Node

CONFIG = """
from truss.base.truss_config import WeightsSource
from truss_train import Image, Runtime, TrainingJob, TrainingProject

print("said by the config")
project = TrainingProject(
    name="p",
    job=TrainingJob(
        image=Image(base_image="i"),
        runtime=Runtime(start_commands=["true"]),
        weights=[WeightsSource(source="hf://acme/tiny@main", mount_location="/app/tiny", allow_paterns=["*.json"])],
    ),
)
"""


def test_a_config_py_from_plan_to_unmount(node: Node, hub: HubServer) -> None:
    config = node.place / "config.py"
    config.write_text(CONFIG)
    commit = hub.repository("acme/tiny").branches["main"]
    planned = node.run("plan", config, "--json")
    assert planned.json["sources"][0]["revision"] == commit
    # Left out, as truss_train does it; but a pattern that is spelled wrong brings everything, so it is said.
    assert "no field 'allow_paterns', it is left out; did you mean 'allow_patterns'?" in planned.err
    node.run("lock", config)
    assert commit in (node.place / "config.lock").read_text()
    hub.reset()
    node.run("mount", config, "--root", node.m, "--locked")
    node.holds(TINY, node.m / "app/tiny")
    node.run("unmount", node.m)
    done = node.run("run", config, "--root", node.m, "--", "cat", node.m / "app/tiny/config.json")
    assert done.out == TINY["config.json"].decode()
    node.clean()


def test_a_config_py_that_is_wrong(node: Node, tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text(CONFIG.replace("Runtime(start_commands", "Runtime(start_comands"))
    said = "config.py:10: Runtime.start_comands: unknown field; did you mean 'start_commands'?"
    assert node.refused(2, "prefetch", config) == f"bdnfs: {said}"


def test_a_truss_config_yaml(node: Node) -> None:
    config = node.place / "config.yaml"
    config.write_text(
        "model_name: tiny\nresources: {accelerator: H100}\n"
        "weights:\n- source: hf://acme/tiny\n  mount_location: /app/tiny\n"
    )
    node.run("mount", config, "--root", node.m)
    node.holds(TINY, node.m / "app/tiny")
    node.run("unmount", node.m)
    node.clean()
