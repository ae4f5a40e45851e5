"""`bdnfs mirror`, and a mount that mirrors on its way, killed at every step: a rerun goes on from there."""

import signal
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES
from tests.commands.node import ROOT, Node, until
from tests.crash.dying import died_at, environment

SOURCE = "hf://acme/big@main"
LARGE = len(BIG["model.safetensors"])
# Each step, and which bytes a rerun may still ask upstream for: a file is remembered once it is durable.
KILLS = {
    "ingest:chunk-put": BIG_BYTES,
    "ingest:chunkmap-put": BIG_BYTES,
    "ingest:flushed": BIG_BYTES,
    "ingest:remembered": BIG_BYTES - LARGE,
    "ingest:manifest-put": BIG_BYTES - LARGE,
    "ingest:version-put": BIG_BYTES - LARGE,
    "ingest:revision-put": 0,
    "ingest:published": 0,
}
STEPS = tuple(KILLS)


@pytest.fixture
def mirroring(node: Node, tmp_path: Path) -> Node:
    node.configure(mirror=str(tmp_path / "mirror"))
    return node


def check_mirror(node: Node, hub: HubServer) -> None:
    """What the mirror says it has is there: another node mounts it with upstream down."""
    assert "0 damaged" in node.run("mirror", "verify").out
    node.run("cache", "evict")
    node.run("mount", SOURCE, node.m, HF_ENDPOINT=hub.url)
    node.holds(BIG)
    node.run("unmount", node.m)


@pytest.mark.parametrize("step", STEPS)
def test_a_rerun_goes_on(mirroring: Node, hub: HubServer, step: str) -> None:
    node = mirroring
    after = 1 if step == "ingest:chunk-put" else 0
    dying = environment(node.place, ROOT, step, "command", after)
    node.start_program(*node.program, "mirror", SOURCE, **dying).wait(-signal.SIGKILL)
    assert died_at(node.place) == step
    hub.reset()
    assert "0 damaged" in node.run("mirror", "verify").out
    (source,) = node.run("mirror", SOURCE, "--json").json["sources"]
    assert hub.bytes_sent <= KILLS[step]
    assert [row["ref"] for row in node.run("mirror", "ls", "--json").json["versions"]] == [source["ref"]]
    assert node.run("mirror", "ls", "--json").json["versions"][0]["tags"] == ["main"]
    hub.reset()
    check_mirror(node, hub)
    assert not hub.bytes_sent


@pytest.mark.parametrize(
    "step",
    [
        "ingest:version-put",
        *(pytest.param(step, marks=pytest.mark.long) for step in ("ingest:chunk-put", "ingest:flushed")),
    ],
)
def test_a_mount_killed_while_it_mirrors(mirroring: Node, hub: HubServer, step: str) -> None:
    node = mirroring
    dying = environment(node.place, ROOT, step, "daemon")
    node.start_program(*node.program, "mount", SOURCE, node.m, **dying).wait(None)
    until(lambda: died_at(node.place), "the daemon's end")
    assert died_at(node.place) == step
    node.run("mount", SOURCE, node.m)
    node.holds(BIG)
    node.run("unmount", node.m)
    node.clean()
    # The index is here, whole or not; whatever the daemon left undone in the mirror, this does.
    node.run("mirror", SOURCE)
    check_mirror(node, hub)
    node.check_cache()
