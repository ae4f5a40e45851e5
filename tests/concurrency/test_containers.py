"""Two that are both pid 1 at one cache: locks and pins hold although neither sees the other's processes."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, CHUNK, TINY
from tests.commands.node import Node, until
from tests.concurrency.conftest import Container

Containers = Callable[..., Container]


def held(node: Node, source: str) -> bool:
    """Say whether something of source is in the cache."""
    return any(item["source"] == source for item in node.run("cache", "ls", "--json").json)


def test_two_that_are_pid_1_share_one_fill(node: Node, hub: HubServer, containers: Containers) -> None:
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=20e6)
    pair = [containers(), containers()]
    filling = [each.start(*node.program, "mount", "hf://acme/big", node.m) for each in pair]
    for command in filling:
        command.wait()
    assert hub.bytes_sent == BIG_BYTES
    for each in pair:
        each.holds(BIG, node.m)
        each.bdnfs("unmount", node.m)
    node.clean()


def test_one_of_two_that_are_pid_1_is_killed_while_it_fills(
    node: Node, hub: HubServer, containers: Containers
) -> None:
    hub.faults.add(match="/cdn/", after=1, times=None, stall=True)
    node.configure(upstream={"fetches": 1, "stall": "1m"})
    victim, other = containers(), containers()
    victim.start(*node.program, "mount", "--lazy", "hf://acme/big", node.m)
    until(lambda: node.run("cache", "du", "--json").json["present_bytes"] >= CHUNK, "the first chunk")
    victim.kill()
    hub.faults.clear()
    hub.reset()
    other.bdnfs("mount", "hf://acme/big", node.m)
    other.holds(BIG, node.m)
    assert hub.bytes_sent <= BIG_BYTES - CHUNK
    other.bdnfs("unmount", node.m)
    node.clean()


@pytest.mark.parametrize("evictor", ["container", "host"])
def test_what_a_container_has_mounted_is_evicted_from_nowhere(
    node: Node, containers: Containers, evictor: str
) -> None:
    mine, other = containers(), containers()
    mine.bdnfs("mount", "hf://acme/tiny", node.m)
    evict = other.bdnfs if evictor == "container" else lambda *words: node.run(*words).out
    assert evict("cache", "evict") == "0 B freed\n"
    mine.holds(TINY, node.m)
    # Nothing unmounted stays pinned: neither after unmount nor after the container's end.
    mine.bdnfs("unmount", node.m)
    until(lambda: evict("cache", "evict") != "0 B freed\n", "the pin to go with the mount")
    assert not held(node, "hf://acme/tiny")
    mine.bdnfs("mount", "hf://acme/tiny", node.m)
    assert evict("cache", "evict") == "0 B freed\n"
    mine.kill()
    until(lambda: evict("cache", "evict") != "0 B freed\n", "the pin to go with the container")


def test_what_a_container_runs_is_pinned_also_when_run_was_killed(node: Node, containers: Containers) -> None:
    mine, other = containers(), containers()
    running = mine.start(
        *node.program, "run", "hf://acme/tiny", node.m, "--", "sh", "-c", "echo ready; sleep infinity"
    )
    until(lambda: "ready" in running.out, "the command")
    # `nsenter` forks into the PID namespace; `bdnfs run` is its child, the command its grandchild.
    run, command = _descendants(running.process.pid)[:2]
    os.kill(run, signal.SIGKILL)
    running.wait(None)
    assert other.bdnfs("cache", "evict") == "0 B freed\n"
    assert node.run("cache", "evict").out == "0 B freed\n"
    os.kill(command, signal.SIGKILL)
    until(lambda: other.bdnfs("cache", "evict") != "0 B freed\n", "the pin to go with the command")


def test_what_the_host_has_mounted_is_not_evicted_by_a_container(node: Node, containers: Containers) -> None:
    """No process holds that pin, and the container can't see the mount: the record has to do."""
    other = containers()
    evict = """
import sys, time
from bdnfs.cache.node import open_node_cache
from bdnfs.session.elsewhere import scanner
from bdnfs.spec.config import CacheConfig
config = CacheConfig(sys.argv[1], reserve_bytes=0)
with open_node_cache(config, scanner(config)) as cache:
    print([row.source for row in cache.evict(unused_since_s=time.time(), dry_run=False).snapshots])
"""
    evicting = (sys.executable, "-c", evict, node.cache)
    node.run("mount", "hf://acme/tiny", node.m)
    node.run("prefetch", "hf://acme/big")
    assert other.start(*evicting).wait().out == "['hf://acme/big']\n"
    node.holds(TINY)
    node.run("unmount", node.m)
    assert other.start(*evicting).wait().out == "['hf://acme/tiny']\n"


def test_commands_in_a_container_leave_what_others_mounted_alone(node: Node, containers: Containers) -> None:
    """Records, directories and daemons of mounts that can't be seen are not taken for leftovers."""
    place = node.place / "volume" / "models"
    mine, other = containers(), containers()
    mine.bdnfs("mount", "hf://acme/tiny", place)
    other.bdnfs("mount", "hf://acme/tiny", place)
    mine.bdnfs("unmount", place)
    mine.bdnfs("mount", "hf://acme/tiny", place)
    other.bdnfs("unmount", place)
    assert '"state": "elsewhere"' in other.bdnfs("status", "--json")
    node.run("status")
    mine.holds(TINY, place)
    assert "nothing of bdnfs is mounted" in other.bdnfs("unmount", place, code=8)
    assert "whole" in mine.bdnfs("status")
    mine.bdnfs("unmount", place)
    assert not place.parent.exists()
    node.clean()


def test_what_a_killed_container_left_is_cleared_by_the_host(node: Node, containers: Containers) -> None:
    place = node.place / "volume" / "models"
    mine = containers()
    mine.bdnfs("mount", "hf://acme/tiny", place)
    mine.kill()
    node.run("status")
    assert not place.parent.exists()
    # The number of its mount namespace may be another's by now: while that lives, the record stays.
    until(lambda: node.run("status") and not node.left_behind(), "the record to go")
    node.clean()


def _descendants(pid: int) -> list[int]:
    """Return the children of pid, theirs after them, and so on."""
    found = [pid]
    for parent in found:
        found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found[1:]
