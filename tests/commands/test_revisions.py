"""Branches, commits, locks: what is asked of upstream, and what happens when nobody answers there."""

import json

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import CONFIG, TINY
from tests.commands.node import Node

OTHER = {**TINY, "config.json": b'{"architectures": ["Moved"]}\n'}


def move(hub: HubServer) -> tuple[str, str]:
    """Move acme/tiny's branch; return the commit before and after."""
    before = hub.repository("acme/tiny").branches["main"]
    return before, hub.commit("acme/tiny", OTHER)


def test_a_branch_that_moved_is_mounted_anew(node: Node, hub: HubServer) -> None:
    node.run("mount", "hf://acme/tiny", node.m)
    before, after = move(hub)
    node.refused(
        8, "mount", "hf://acme/tiny", node.m, says=[f"hf://acme/tiny@{before[:12]}", "bdnfs unmount"]
    )
    node.holds(TINY)
    node.run("unmount", node.m)
    sent = hub.bytes_sent
    node.run("mount", "hf://acme/tiny", node.m)
    assert node.status()["revision"] == after
    node.holds(OTHER)
    assert hub.bytes_sent - sent == len(OTHER["config.json"])  # equal files are stored once
    node.run("unmount", node.m)
    node.clean()


def test_a_branch_asks_once_for_each_mount(node: Node, hub: HubServer) -> None:
    node.run("prefetch", "hf://acme/tiny")
    hub.reset()
    node.run("mount", "hf://acme/tiny", node.m)
    assert [(request.method, request.status) for request in hub.requests] == [("GET", 200)]


def test_upstream_down_falls_back_to_what_was_last_seen(node: Node, hub: HubServer) -> None:
    node.run("prefetch", "hf://acme/tiny")
    commit = hub.repository("acme/tiny").branches["main"]
    hub.stop()
    done = node.run("mount", "hf://acme/tiny", node.m)
    (warning,) = done.err.splitlines()
    assert warning.startswith("bdnfs: warning: hf://acme/tiny: ")
    assert commit in warning
    node.holds(TINY)
    node.run("unmount", node.m)
    done = node.run("mount", "hf://acme/tiny", node.m, "--progress=json")
    (line,) = done.err.splitlines()
    assert commit in json.loads(line)["warning"]
    node.run("unmount", node.m)
    node.refused(5, "mount", "hf://acme/tiny", node.m, "--refresh", says=["hf://acme/tiny"])
    node.refused(5, "mount", "hf://acme/big", node.m, says=["hf://acme/big"])
    node.clean()


def test_pinned_and_locked_hits_ask_nobody(node: Node, hub: HubServer) -> None:
    commit = hub.repository("acme/tiny").branches["main"]
    spec = node.spec({"source": "hf://acme/tiny@main", "mount_location": str(node.m)})
    done = node.run("lock", spec)
    assert f"hf://acme/tiny@main is at {commit}" in done.out
    assert str(node.place / "spec.lock") in done.out
    assert commit in (node.place / "spec.lock").read_text()
    node.run("prefetch", spec)
    hub.stop()
    for words in ([f"hf://acme/tiny@{commit}", node.m], [spec], [spec, "--offline"]):
        assert node.run("mount", *words).err == ""
        node.holds(TINY)
        node.run("unmount", node.m)
    assert "architectures" in node.run("run", spec, "--", "cat", node.m / "config.json").out
    # --locked wants to know whether the branch has moved; where nobody can say, the lock has to do.
    assert "warning" in node.run("mount", spec, "--locked").err
    node.run("unmount", node.m)
    assert node.run("mount", spec, "--locked", "--offline").err == ""
    node.run("unmount", node.m)
    node.clean()


def test_locked_fails_when_the_branch_has_moved_and_names_both(node: Node, hub: HubServer) -> None:
    spec = node.spec({"source": "hf://acme/tiny", "mount_location": str(node.m)})
    node.run("lock", spec)
    node.run("prefetch", spec, "--locked")
    before, after = move(hub)
    node.refused(6, "mount", spec, "--locked", says=["hf://acme/tiny", before, after, "bdnfs lock"])
    node.run("mount", spec)
    assert node.status()["revision"] == before
    node.run("unmount", node.m)
    node.run("prefetch", spec, "--refresh")
    node.run("mount", spec, "--refresh")
    assert node.status()["revision"] == after
    node.run("unmount", node.m)
    node.run("lock", spec)
    node.run("mount", spec, "--locked")
    assert node.status()["revision"] == after
    node.run("unmount", node.m)
    node.clean()


def test_locked_wants_every_source_in_the_lock(node: Node) -> None:
    one = {"source": "hf://acme/tiny", "mount_location": "tiny"}
    node.run("lock", node.spec(one))
    spec = node.spec(one, {"source": "hf://acme/big", "mount_location": "big"})
    node.refused(2, "mount", spec, node.m, "--locked", says=["hf://acme/big", "spec.lock", "bdnfs lock"])
    node.clean()


def test_offline_asks_nobody(node: Node, hub: HubServer) -> None:
    node.refused(5, "mount", "hf://acme/tiny", node.m, "--offline", says=["hf://acme/tiny", "--offline"])
    node.refused(5, "prefetch", "hf://acme/tiny", says=["hf://acme/tiny"], HF_HUB_OFFLINE="1")
    assert hub.requests == []
    node.run("prefetch", "hf://acme/tiny")
    move(hub)
    hub.reset()
    node.run("mount", "hf://acme/tiny", node.m, "--offline")
    node.holds(TINY)
    assert hub.requests == []
    node.run("unmount", node.m)
    # Known, but not whole any more.
    node.run("cache", "evict")
    node.refused(5, "mount", "hf://acme/tiny", node.m, "--offline", says=["hf://acme/tiny", "--offline"])
    assert hub.requests == []
    node.clean()


def test_tags_and_commits_and_datasets(node: Node, hub: HubServer) -> None:
    before, _ = move(hub)
    hub.tag("acme/tiny", "v1", before)
    node.run("prefetch", "hf://acme/tiny@v1")
    node.run("mount", "hf://acme/tiny@v1", node.m)
    node.holds(TINY)
    node.run("unmount", node.m)
    hub.commit("acme/rows", {"data/train.parquet": CONFIG}, kind="datasets")
    node.run("prefetch", "hf://datasets/acme/rows")
    node.run("mount", "hf://datasets/acme/rows", node.m)
    node.holds({"data/train.parquet": CONFIG})
    node.run("unmount", node.m)
    node.clean()


@pytest.mark.parametrize("scheme", ["file", "https"])
def test_other_schemes(node: Node, hub: HubServer, scheme: str) -> None:
    if scheme == "file":
        directory = node.place / "files"
        directory.mkdir()
        (directory / "config.json").write_bytes(CONFIG)
        source = f"file://{directory}"
    else:
        commit = hub.repository("acme/tiny").branches["main"]
        source = f"{hub.url}/acme/tiny/resolve/{commit}/config.json"
    node.run("prefetch", source)
    node.run("mount", source, node.m)
    node.holds({"config.json": CONFIG})
    node.run("unmount", node.m)
    hub.reset()
    node.run("mount", source, node.m)
    assert hub.bytes_sent <= 1  # what https is asked for to learn the size
    assert node.shown() == "native"
    node.run("unmount", node.m)
    node.clean()
