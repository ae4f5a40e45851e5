"""docs/semantics.md, "run"."""

import os
import signal
import sys

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES
from tests.commands.node import Node, until


def test_nothing_starts_early(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, slow_bytes_per_s=20e6)
    started = node.place / "started"
    code = f"""
import os, sys
open({str(started)!r}, "x").close()
table = [line for line in open("/proc/self/mountinfo") if {str(node.m)!r} in line]
assert len(table) == 1 and "fuse" not in table[0] and " ro," in table[0], table
print(sum(len(open(os.path.join({str(node.m)!r}, name), "rb").read()) for name in os.listdir({str(node.m)!r})))
"""
    running = node.start("run", "hf://acme/big", node.m, "--", sys.executable, "-c", code)
    # Until the command has started, what it will need is not all here; afterwards it is.
    sent_before = 0
    while not started.exists() and running.process.poll() is None:
        sent_before = hub.bytes_sent if not started.exists() else sent_before
        assert not node.mounts()
    assert running.wait().out == f"{BIG_BYTES}\n"
    assert hub.bytes_sent == BIG_BYTES
    assert 0 < sent_before <= BIG_BYTES
    assert not node.mounts()
    node.clean()
    # Where it can't be whole, it does not start at all.
    node.run("cache", "evict")
    started.unlink()
    hub.faults.clear()
    hub.faults.add(match="/cdn/", times=None, status=404)
    node.refused(5, "run", "hf://acme/big", node.m, "--", "touch", started, says=["model.safetensors"])
    assert not started.exists()
    node.clean()


def test_it_pins_what_it_uses(node: Node, hub: HubServer) -> None:
    running = node.start("run", "hf://acme/big", node.m, "--", "sh", "-c", "echo $$; exec sleep 600")
    command = int(until(lambda: running.out, "the command"))
    try:
        assert node.run("cache", "evict").out == "0 B freed\n"
        running.signal(signal.SIGKILL)
        running.wait(-signal.SIGKILL)
        assert node.run("cache", "evict").out == "0 B freed\n"
        config = open(f"/proc/{command}/root{node.m}/config.json", "rb")  # noqa: SIM115
        with config:
            assert config.read() == BIG["config.json"]
    finally:
        os.kill(command, signal.SIGKILL)
    until(lambda: not node.run("cache", "evict").out.startswith("0 B"), "the pin to end with the command")
    node.run("status")
    node.clean()
