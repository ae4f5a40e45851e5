"""`--hf-cache`: what is mounted is found by its name, as if it had been downloaded, with no network."""

import os
import sys

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import TINY
from tests.commands.node import Node

# What huggingface_hub itself, with nothing but the variables of a job, finds of a repository.
FIND = """
import json, sys
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
repo, kind, revision = sys.argv[1], sys.argv[2], sys.argv[3] or None
found = {"config": open(hf_hub_download(repo, "config.json", repo_type=kind, revision=revision)).read()}
found["snapshot"] = snapshot_download(repo, repo_type=kind, revision=revision)
try:
    hf_hub_download(repo, "nowhere.bin", repo_type=kind, revision=revision)
except LocalEntryNotFoundError:
    found["missing"] = True
print(json.dumps(found))
"""


def found(
    node: Node, repo: str, kind: str = "model", revision: str = "", **environment: str
) -> dict[str, object]:
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    command = node.start_program(sys.executable, "-c", FIND, repo, kind, revision, **environment)
    return dict(command.wait().json)


def test_run_shows_the_command_a_hub_cache_and_nothing_stays(node: Node, hub: HubServer) -> None:
    view, commit = node.place / "hub" / "cache", hub.repository("acme/tiny").branches["main"]
    node.run("prefetch", "hf://acme/tiny@main")
    hub.reset()
    done = node.exec(
        "run", "hf://acme/tiny@main", node.m, "--hf-cache", view, "--offline",
        "--", sys.executable, "-c", FIND, "acme/tiny", "model", "",
    )  # fmt: skip
    assert done.json == {
        "config": TINY["config.json"].decode(),
        "snapshot": str(view / "models--acme--tiny/snapshots" / commit),
        "missing": True,
    }
    assert hub.requests == []  # nobody asked the Hub for anything
    assert not (node.place / "hub").exists()
    node.clean()


def test_run_leaves_a_variable_that_is_set(node: Node) -> None:
    say = ["--", "sh", "-c", "echo $HF_HUB_CACHE $HF_HUB_OFFLINE"]
    view = node.place / "view"
    assert node.run("run", "hf://acme/tiny", node.m, "--hf-cache", view, *say).out == f"{view} 1\n"
    done = node.run("run", "hf://acme/tiny", node.m, "--hf-cache", view, *say, HF_HUB_OFFLINE="0")
    assert done.out == f"{view} 0\n"


def test_mount_shows_it_until_it_is_unmounted(node: Node, hub: HubServer) -> None:
    view, commit = node.place / "view", hub.repository("acme/tiny").branches["main"]
    spec = node.spec(
        {"source": "hf://acme/tiny@main", "mount_location": "tiny"},
        {"source": f"hf://acme/big@{hub.repository('acme/big').branches['main']}", "mount_location": "big",
         "allow_patterns": ["*.json"]},
    )  # fmt: skip
    node.run("mount", spec, node.m, "--hf-cache", view)
    for name in ("acme/tiny", "acme/big"):
        assert found(node, name, HF_HUB_CACHE=str(view))["config"] == TINY["config.json"].decode()
    assert found(node, "acme/tiny", "model", commit, HF_HUB_CACHE=str(view))["missing"]
    node.run("mount", spec, node.m, "--hf-cache", view)  # it stands already
    node.run("unmount", node.m / "tiny")
    assert not (view / "models--acme--tiny").exists()
    assert (view / "models--acme--big").exists()
    node.run("unmount", node.m)
    assert not view.exists()
    node.clean()


def test_a_dataset_and_a_branch_in_a_lazy_mount(node: Node, hub: HubServer) -> None:
    hub.commit("acme/rows", {"config.json": b"rows"}, kind="datasets", branch="v2/long")
    view = node.place / "view"
    node.run("mount", "--lazy", "hf://datasets/acme/rows@v2/long", node.m, "--hf-cache", view)
    for revision in ("v2/long", ""):
        assert found(node, "acme/rows", "dataset", revision, HF_HUB_CACHE=str(view))["config"] == "rows"
    node.run("unmount", node.m)
    assert not view.exists()


def test_what_is_there_of_others_is_left_alone(node: Node) -> None:
    view = node.place / "view"
    (view / "models--acme--tiny").mkdir(parents=True)
    said = ["models--acme--tiny already", "empty directory"]
    node.refused(8, "mount", "hf://acme/tiny", node.m, "--hf-cache", view, says=said)
    node.refused(8, "run", "hf://acme/tiny", node.m, "--hf-cache", view, "--", "true", says=said)
    assert os.listdir(view / "models--acme--tiny") == []
    node.clean()
    node.run("mount", "hf://acme/big", node.m, "--hf-cache", view)  # another repository may stand beside it
    (view / "mine.txt").write_text("x")
    node.run("unmount", node.m)
    assert sorted(os.listdir(view)) == ["mine.txt", "models--acme--tiny"]


def test_another_place_or_commit_of_the_same_repository(node: Node, hub: HubServer) -> None:
    view, old = node.place / "view", hub.repository("acme/tiny").branches["main"]
    node.run("mount", f"hf://acme/tiny@{old}", node.m / "a", "--hf-cache", view)
    said = node.refused(8, "mount", f"hf://acme/tiny@{old}", node.m / "b", "--hf-cache", view)
    assert "at another place" in said
    new = hub.commit("acme/tiny", {"config.json": b"new"})
    said = node.refused(8, "mount", "hf://acme/tiny@main", node.m / "b", "--hf-cache", view)
    assert "at another commit" in said
    assert not (node.m / "b").exists()
    assert found(node, "acme/tiny", HF_HUB_CACHE=str(view))["config"] == TINY["config.json"].decode()
    spec = node.spec(
        {"source": f"hf://acme/tiny@{old}", "mount_location": "old"},
        {"source": "hf://acme/tiny@main", "mount_location": "new"},
    )
    node.run("mount", spec, node.m / "both", "--hf-cache", node.place / "both")
    for revision, content in (("", b"new"), (new, b"new"), (old, TINY["config.json"])):
        seen = found(node, "acme/tiny", "model", revision, HF_HUB_CACHE=str(node.place / "both"))
        assert seen["config"] == content.decode()
    node.run("unmount", node.m)
    assert not view.exists()
    assert not (node.place / "both").exists()
    node.clean()


def test_a_command_that_was_killed_leaves_it_to_the_next(node: Node) -> None:
    view, ready = node.place / "view", node.place / "ready"
    os.mkfifo(ready)
    command = node.start(
        "run",
        "hf://acme/tiny",
        node.m,
        "--hf-cache",
        view,
        "--",
        "sh",
        "-c",
        f"echo on > {ready}; exec sleep 600",
    )
    assert ready.read_text() == "on\n"
    assert (view / "models--acme--tiny").exists()
    node.run("status")  # its mount shows in its namespace alone, and is no reason to tidy up
    node.run("run", "hf://acme/tiny", node.m, "--hf-cache", view, "--", "true")  # another rank, which ends
    assert (view / "models--acme--tiny").exists()
    os.killpg(command.process.pid, 9)
    command.wait(-9)
    node.clean()
    assert not view.exists()


def test_specs_that_have_no_such_view(node: Node) -> None:
    twice = [
        {"source": f"hf://acme/tiny{at}", "mount_location": place}
        for at, place in (("", "a"), ("@main", "b"))
    ]
    node.refused(
        2, "mount", node.spec(*twice), node.m, "--hf-cache", "view", says=["declared twice at one revision"]
    )
    (node.place / "files").mkdir()
    (node.place / "files" / "x").write_text("x")
    files = f"file://{node.place}/files"
    node.refused(2, "mount", files, node.m, "--hf-cache", "view", says=["declares none"])
    node.clean()
