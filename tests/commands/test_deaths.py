"""Killed, stopped, interrupted: whatever happens when, nothing is lost and nothing stays behind."""

import contextlib
import os
import random
import signal
import subprocess
import time

import pytest

from bdnfs.cache.locks import lock_until, open_lock_file
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, CHUNK
from tests.commands.node import Node, until


def trickle(hub: HubServer, bytes_per_s: float = 6e6) -> None:
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=bytes_per_s)


def a_chunk_is_here(node: Node) -> bool:
    return bool(node.run("cache", "du", "--json").json["present_bytes"] >= CHUNK)


def test_killed_daemon_then_mount_clears_and_resumes(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", after=1, times=None, stall=True)
    node.configure(upstream={"fetches": 1, "stall": "1m"})
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    until(lambda: a_chunk_is_here(node), "the first chunk")
    (daemon,) = node.daemons()
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not node.daemons(), "the daemon's end")
    assert node.shown() == "fuse"
    hub.faults.clear()
    hub.reset()
    node.run("mount", "hf://acme/big", node.m)
    assert node.shown() == "native"
    node.holds(BIG)
    assert hub.bytes_sent <= BIG_BYTES - CHUNK
    assert len(node.mounts()) == 1
    node.run("unmount", node.m)
    node.clean()


@pytest.mark.parametrize("command", ["status", "unmount"])
def test_killed_daemon_is_cleared_by(node: Node, hub: HubServer, command: str) -> None:
    trickle(hub)
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    (daemon,) = node.daemons()
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not node.daemons(), "the daemon's end")
    if command == "status":
        assert f"{node.m}: its daemon had died" in node.run("status").out
    else:
        node.run("unmount", node.m)
    node.clean()


def test_a_stopped_daemon_is_found_and_cleared(node: Node, hub: HubServer) -> None:
    trickle(hub)
    node.configure(upstream={"stall": "1m"})
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    (daemon,) = node.daemons()
    os.kill(daemon, signal.SIGSTOP)
    reader = node.start_program("cat", node.m / "model.safetensors")
    # At the worst moment: with the index's lock held. If it isn't by the daemon, then by us.
    lock = open_lock_file(node.cache / "index.lock")
    lock_until(lock, exclusive=True, deadline_s=time.monotonic())
    try:
        status = node.start("status", "--json")
        until(lambda: node.shown() == "" and not node.daemons(), "the mount to be cleared")
    finally:
        os.close(lock)
    assert status.wait().json["cleared"] == [str(node.m)]
    assert reader.wait(None).code != 0
    node.clean()


def test_kill_of_mount_before_anything_is_bound(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/api/.*/tree/", times=None, delay_s=60)
    mounting = node.start("mount", "hf://acme/big", node.m)
    until(node.daemons, "the daemon")
    mounting.signal(signal.SIGKILL)
    until(lambda: not node.daemons(), "the daemon to notice")
    node.refused(8, "unmount", node.m, says=["nothing of bdnfs is mounted"])
    left = node.left_behind()  # a record without a word in it: another command may be about to fill it
    assert [each.split()[0] for each in left] == ["record"], left


def test_kill_of_mount_while_filling_leaves_a_mount_that_fills(node: Node, hub: HubServer) -> None:
    trickle(hub, 40e6)
    mounting = node.start("mount", "hf://acme/big", node.m)
    until(lambda: node.shown() == "fuse" and "fetching" in mounting.err, "the mount")
    mounting.signal(signal.SIGKILL)
    mounting.wait(-signal.SIGKILL)
    node.run("wait", node.m)
    node.holds(BIG)
    node.run("unmount", node.m)
    node.clean()


def test_kill_of_run_and_its_command_still_pins(node: Node, hub: HubServer) -> None:
    running = node.start("run", "hf://acme/tiny", node.m, "--", "sh", "-c", "echo $$; exec sleep 600")
    pid = int(until(lambda: running.out, "the command"))
    running.signal(signal.SIGKILL)
    running.wait(-signal.SIGKILL)
    try:
        (held,) = node.run("cache", "ls", "--json").json
        assert held["pinned"] == "mounted"
        assert node.run("cache", "evict").out == "0 B freed\n"
        assert os.path.exists(f"/proc/{pid}/root{node.m}/config.json")
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}/root/"), "the command's end")
    until(
        lambda: "freed" in node.run("cache", "evict").out and not node.run("cache", "ls", "--json").json, ""
    )
    node.run("status")  # nobody else was left to remove the directory
    node.clean()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_mount_takes_everything_away(node: Node, hub: HubServer, number: int) -> None:
    trickle(hub)
    mounting = node.start("mount", "hf://acme/big", node.m / "deep" / "er")
    until(lambda: node.shown(node.m / "deep" / "er") == "fuse", "the mount")
    mounting.signal(number)
    said = mounting.wait(128 + number).error
    assert said.endswith("what has been fetched is kept")
    assert not node.daemons()
    node.clean()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_prefetch_keeps_what_it_has(node: Node, hub: HubServer, number: int) -> None:
    hub.faults.add(match="/cdn/", after=1, times=None, stall=True)
    node.configure(upstream={"fetches": 1, "stall": "1m"})
    filling = node.start("prefetch", "hf://acme/big")
    until(lambda: a_chunk_is_here(node), "the first chunk")
    began = time.monotonic()
    filling.signal(number)
    filling.wait(128 + number)
    assert time.monotonic() - began < 10
    hub.faults.clear()
    hub.reset()
    node.run("prefetch", "hf://acme/big")
    assert hub.bytes_sent <= BIG_BYTES - CHUNK
    node.clean()


def test_interrupt_while_upstream_does_not_answer(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/api/", times=None, delay_s=60)
    for words in (["mount", "hf://acme/tiny", node.m], ["prefetch", "hf://acme/tiny"]):
        before = hub.faults.hits
        command = node.start(*words)
        until(lambda before=before: hub.faults.hits > before, "the question")
        command.signal(signal.SIGINT)
        command.wait(130, limit_s=10)
    node.clean()


def test_signals_reach_the_command_of_run(node: Node) -> None:
    script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    running = node.start("run", "hf://acme/tiny", node.m, "--", "sh", "-c", script)
    until(lambda: "ready" in running.out, "the command")
    running.signal(signal.SIGTERM)
    assert running.wait(5).out == "ready\ngot\n"
    node.clean()
    # Ctrl-C comes from a terminal to everyone in front of it; from a supervisor to `bdnfs run` alone.
    running = node.start("run", "hf://acme/tiny", node.m, "--", "sh", "-c", script.replace("TERM", "INT"))
    until(lambda: "ready" in running.out, "the command")
    running.signal(signal.SIGINT)
    assert running.wait(5).out == "ready\ngot\n"
    node.clean()


@pytest.mark.parametrize("words", [["mount"], ["prefetch"], ["run"]], ids=lambda words: words[0])
def test_interrupts_at_random_moments(node: Node, hub: HubServer, words: list[str]) -> None:
    trickle(hub, 40e6)
    dice = random.Random(words[0])
    place = node.m / "deep"
    ends = {"mount": [place], "prefetch": [], "run": [place, "--", "sleep", "0.1"]}[words[0]]
    for _ in range(5):
        command = node.start(*words, "hf://acme/big", *ends)
        # Not a wait for something: the moment is the dice's.
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.process.wait(dice.uniform(0.0, 1.0))
        command.signal(dice.choice([signal.SIGINT, signal.SIGTERM]))
        done = command.wait(None)
        assert done.code in (0, 130, 143, -signal.SIGINT, -signal.SIGTERM), done
        if done.code == 0 and words == ["mount"]:
            node.run("unmount", place)
        node.clean()
    hub.faults.clear()
    node.run("run", "hf://acme/big", node.m, "--", "true")
    node.clean()


def test_ctrl_c_twice_does_not_stop_the_tidying_up(node: Node, hub: HubServer) -> None:
    trickle(hub)
    mounting = node.start("mount", "hf://acme/big", node.m)
    until(lambda: node.shown() == "fuse", "the mount")
    with contextlib.suppress(subprocess.TimeoutExpired):
        mounting.process.wait(0.05)
    for _ in range(3):
        mounting.signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            mounting.process.wait(0.02)
    mounting.wait(130)
    node.clean()
