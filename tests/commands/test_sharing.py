"""Several commands at once: one fill for all of them, and each byte leaves upstream once."""

import os
import signal
import sys
from collections.abc import Callable

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES
from tests.commands.node import Node, until


def slow(hub: HubServer) -> None:
    """Let a fill of acme/big take about half a second, so that commands do meet."""
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=20e6)


def test_four_processes_mount_the_same_cold_spec_at_different_places(node: Node, hub: HubServer) -> None:
    slow(hub)
    places = [node.m / str(number) for number in range(4)]
    mounting = [node.start("mount", "hf://acme/big", place) for place in places]
    for command in mounting:
        command.wait()
    assert hub.bytes_sent == BIG_BYTES
    for place in places:
        assert node.shown(place) == "native"
        node.holds(BIG, place)
    node.run("unmount", node.m)
    node.clean()


def test_mount_twice_at_once_at_the_same_place(node: Node, hub: HubServer) -> None:
    slow(hub)
    mounting = [node.start("mount", "hf://acme/big", node.m) for _ in range(2)]
    for command in mounting:
        command.wait()
    assert hub.bytes_sent == BIG_BYTES
    assert len(node.mounts()) == 1
    node.holds(BIG)
    node.run("unmount", node.m)
    node.clean()


def test_eight_ranks_of_run_share_one_fill(node: Node, hub: HubServer) -> None:
    slow(hub)
    code = "import os, sys; sys.exit(os.path.getsize(sys.argv[1]) != int(sys.argv[2]))"
    model, size = node.m / "model.safetensors", len(BIG["model.safetensors"])
    ranks = [
        node.start("run", "hf://acme/big", node.m, "--", sys.executable, "-c", code, model, size)
        for _ in range(8)
    ]
    for rank in ranks:
        rank.wait()
    assert hub.bytes_sent == BIG_BYTES
    node.clean()


def test_when_the_first_is_interrupted_the_second_goes_on(node: Node, hub: HubServer) -> None:
    slow(hub)
    first = node.start("mount", "hf://acme/big", node.m)
    until(lambda: node.shown() == "fuse", "the first mount")
    second = node.start("mount", "hf://acme/big", node.m)
    until(lambda: "fetching" in second.err, "the second to wait for it")
    first.signal(signal.SIGINT)
    first.wait(130)
    second.wait()
    assert node.shown() == "native"
    node.holds(BIG)
    assert hub.bytes_sent < 2 * BIG_BYTES
    node.run("unmount", node.m)
    node.clean()


def test_prefetch_and_mount_and_run_share_too(node: Node, hub: HubServer) -> None:
    slow(hub)
    commands = [
        node.start("prefetch", "hf://acme/big"),
        node.start("mount", "hf://acme/big", node.m),
        node.start("run", "hf://acme/big", node.place / "r", "--", "true"),
    ]
    for command in commands:
        command.wait()
    assert hub.bytes_sent == BIG_BYTES
    node.run("unmount", node.m)
    node.clean()


def test_one_fails_and_the_others_do_not_wait_for_ever(node: Node, hub: HubServer) -> None:
    node.configure(upstream={"attempts": 1})
    hub.faults.add(match="/cdn/", times=None, status=404)
    commands = [node.start("mount", "hf://acme/big", node.m / str(number)) for number in range(3)]
    for command in commands:
        command.wait(5)
    node.clean()


def test_a_cache_is_shared_by_nobody_else(nodes: Callable[..., Node]) -> None:
    mine, theirs = nodes(), nodes()
    os.makedirs(mine.cache)
    os.chown(mine.cache, 1000, 1000)
    mine.refused(9, "prefetch", "hf://acme/tiny", says=[str(mine.cache), "uid 1000", "BDNFS_CACHE_DIR"])
    mine.refused(9, "status", says=["uid 1000"])
    os.chown(mine.cache, 0, 0)
    theirs.run("prefetch", "hf://acme/tiny")
    (theirs.cache / "format").write_text("999\n")
    theirs.refused(9, "prefetch", "hf://acme/tiny", says=["999", "update bdnfs"])
    (theirs.cache / "format").write_text("1\n")


INTERRUPTED_AT_THE_END = """
import os, sys, time
from bdnfs.cli import main, progress
begun, go_on, *words = sys.argv[1:]
def show(self, view):
    if view.state == "whole":
        open(begun, "w").close()
        while not os.path.exists(go_on):
            time.sleep(0.01)
        raise KeyboardInterrupt
progress.Shower.show = show
sys.argv = ["bdnfs", *words]
sys.exit(main())
"""


def test_what_the_second_was_told_stands_though_the_first_is_interrupted(node: Node, hub: HubServer) -> None:
    """The first is told that all is whole, and interrupted just then; the second has said so to its user."""
    begun, go_on = node.place / "begun", node.place / "go-on"
    first = node.python(INTERRUPTED_AT_THE_END, begun, go_on, "mount", "hf://acme/big", node.m)
    until(begun.exists, "the first to be told")
    node.run("mount", "hf://acme/big", node.m)
    go_on.touch()
    first.wait(130)
    assert node.shown() == "native"
    node.holds(BIG)
    node.run("unmount", node.m)
    node.clean()


def test_what_nobody_else_was_told_of_goes_with_the_interrupted(node: Node, hub: HubServer) -> None:
    begun, go_on = node.place / "begun", node.place / "go-on"
    first = node.python(INTERRUPTED_AT_THE_END, begun, go_on, "mount", "hf://acme/big", node.m)
    until(begun.exists, "the first to be told")
    go_on.touch()
    first.wait(130)
    node.clean()
