"""Lazy mounts: readable before the bytes are here, whole behind the readers, or never whole at all."""

import hashlib
import signal
import subprocess
import sys

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, CHUNK, TINY
from tests.commands.node import Node, until

MODEL = BIG["model.safetensors"]


def test_lazy_returns_at_once_and_wait_waits(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, delay_s=60)  # until the faults are cleared
    node.configure(upstream={"stall": "2s", "attempts": 100})
    done = node.run("mount", "--lazy", "hf://acme/big", node.m)
    assert f"bdnfs wait {node.m}" in done.out
    assert node.shown() == "fuse"
    told = node.status()
    assert (told["kind"], told["state"], told["total_bytes"]) == ("fuse", "fetching", BIG_BYTES)
    assert told["daemon_pid"] in node.daemons()
    text = node.run("status").out
    assert f"{node.m}  fetching, " in text
    assert f"daemon {told['daemon_pid']}, log {told['log']}" in text
    node.refused(7, "wait", node.m, "--timeout", "50ms", says=[str(node.m), "kept"])
    assert node.shown() == "fuse"
    hub.faults.clear()
    node.run("wait", node.m, "--timeout", "50s")
    assert node.shown() == "native"
    node.holds(BIG)
    assert hub.bytes_sent == BIG_BYTES
    node.run("unmount", node.m)
    node.clean()


def test_a_reader_before_the_bytes_are_there_gets_the_right_ones(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, delay_s=0.5)
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    reader = node.start_program("tail", "-c", "1000", node.m / "model.safetensors")
    reader.wait()
    assert (reader.place / "out").read_bytes() == MODEL[-1000:]
    node.run("wait", node.m)
    assert hub.bytes_sent == BIG_BYTES
    node.run("unmount", node.m)
    node.clean()


def test_a_reader_keeps_its_file_across_the_hand_off(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=20e6)
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    code = f"""
import hashlib, os, sys
with open({str(node.m / "model.safetensors")!r}, "rb") as file:
    print("open", flush=True)
    sys.stdin.readline()
    print(hashlib.sha256(file.read()).hexdigest(), flush=True)
    sys.stdin.readline()
"""
    reader = node.start_program(sys.executable, "-c", code, how={"stdin": subprocess.PIPE})
    stdin = reader.process.stdin  # type: ignore[union-attr]
    assert stdin is not None
    with stdin:
        until(lambda: "open" in reader.out, "the reader")
        node.run("wait", node.m)
        assert node.shown() == "native"
        assert node.daemons()  # for the open file
        stdin.write(b"\n")
        stdin.flush()
        until(lambda: hashlib.sha256(MODEL).hexdigest() in reader.out, "the reader's sum")
    reader.wait()
    until(lambda: not node.daemons(), "the daemon to end with the last open file")
    node.run("unmount", node.m)
    node.clean()


def test_a_failed_lazy_fill_shows_in_status_and_wait(node: Node, hub: HubServer) -> None:
    node.configure(upstream={"attempts": 1, "stall": "1m"})
    hub.faults.add(match="/cdn/", times=None, status=404, delay_s=3.0)  # not before `mount` has returned
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    node.refused(5, "wait", node.m, says=["model.safetensors"])
    told = node.status()
    assert told["state"] == "failed"
    assert "model.safetensors" in told["error"]
    assert "error: " in node.run("status").out
    # What is said next is how to go on, and it works.
    node.refused(5, "mount", "hf://acme/big", node.m, says=["model.safetensors", "`bdnfs unmount` it"])
    hub.faults.clear()
    node.run("unmount", node.m)
    node.run("mount", "hf://acme/big", node.m)
    node.holds(BIG)
    node.run("unmount", node.m)
    node.clean()


def test_no_fill_reads_what_is_larger_than_the_capacity(node: Node, hub: HubServer) -> None:
    size = 12 * CHUNK + 1
    hub.commit("acme/wide", {"data.bin": bytes(range(256)) * (size // 256) + b"!"})
    node.configure(cache={"capacity": "64MiB"})
    done = node.run("mount", "--lazy", "--no-fill", "hf://acme/wide", node.m)
    assert "kept within the capacity" in done.out
    assert hub.bytes_sent == 0
    assert node.status()["state"] == "window"
    assert "--no-fill" in node.run("status").out
    # Nothing will ever make it whole: nobody waits for that.
    node.refused(8, "wait", node.m, says=[str(node.m), "--no-fill"])
    summed = node.start_program("sh", "-c", f"cat {node.m}/data.bin | tail -c 3").wait()
    assert summed.out.endswith("!")
    assert size <= hub.bytes_sent <= size + 2 * CHUNK
    assert node.run("cache", "du", "--json").json["present_bytes"] <= 64 << 20
    node.refused(4, "mount", "hf://acme/wide", node.place / "m2", says=["needs 96 MiB", "64 MiB"])
    node.run("unmount", node.m)
    node.clean()


def test_lazy_hits_are_native_at_once(node: Node, hub: HubServer) -> None:
    node.run("prefetch", "hf://acme/tiny")
    assert node.run("mount", "--lazy", "hf://acme/tiny", node.m).out == ""
    assert node.shown() == "native"
    node.holds(TINY)
    node.run("unmount", node.m)
    node.clean()


def test_mount_waits_for_a_lazy_mount_of_the_same(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=40e6)
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    waiting = node.start("mount", "hf://acme/big", node.m)
    until(lambda: "fetching" in waiting.err, "the second")
    # It waits for what another made: when it gives up, that stays.
    waiting.signal(signal.SIGINT)
    waiting.wait(130)
    assert node.shown() == "fuse"
    node.run("mount", "hf://acme/big", node.m)
    assert node.shown() == "native"
    assert hub.bytes_sent == BIG_BYTES
    node.run("unmount", node.m)
    node.clean()
