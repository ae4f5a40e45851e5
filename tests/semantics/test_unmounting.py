"""docs/semantics.md, "Unmounting"."""

import os
import signal

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG
from tests.commands.node import Node, until
from tests.semantics.talker import Talker

MODEL = BIG["model.safetensors"]


def test_in_use_is_refused(node: Node, hub: HubServer) -> None:
    node.run("mount", "hf://acme/big", node.m)
    with Talker(node) as reader:
        reader.open(node.m / "model.safetensors")
        said = node.refused(8, "unmount", node.m, says=["in use by", str(reader.pid), "--force"])
        assert str(node.m) in said
        assert node.shown() == "native"
        node.run("unmount", "--force", node.m)
        assert node.shown() == ""
        assert reader.ask("os.pread(fd, 100, 5000)") == MODEL[5000:5100].hex()
    node.clean()
    # Through what was opened before the hand-off.
    node.run("cache", "evict")
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.configure(upstream={"stall": "1s", "attempts": 100})
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    with Talker(node) as reader:
        reader.open(node.m / "model.safetensors")
        hub.faults.clear()
        node.run("wait", node.m)
        node.refused(8, "unmount", node.m, says=["in use by", str(reader.pid)])
        node.run("unmount", "--force", node.m)
        assert reader.ask("os.pread(fd, 100, 5000)") == MODEL[5000:5100].hex()
    until(lambda: not node.daemons(), "the daemon to end with the last open file")
    node.clean()
    # One that still fills.
    node.run("cache", "evict")
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    with Talker(node) as reader:
        reader.open(node.m / "model.safetensors")
        node.refused(8, "unmount", node.m, says=["in use by", str(reader.pid)])
        node.run("unmount", "--force", node.m)
        assert reader.ask("os.pread(fd, 100, 5000)") in ("EIO", "ENOTCONN", "ECONNABORTED")
    node.clean()


def test_a_stopped_daemon_holds_nobody_for_long(node: Node, hub: HubServer) -> None:
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.configure(upstream={"stall": "1m"})
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    (daemon,) = node.daemons()
    with Talker(node) as reader, Talker(node) as looker:
        reader.open(node.m / "model.safetensors")
        os.kill(daemon, signal.SIGSTOP)
        reader.say("os.pread(fd, 100, 5000)")
        looker.say(f"os.stat({str(node.m / 'never-asked-for-before')!r})")
        until(reader.is_waiting, "the read to wait")
        until(looker.is_waiting, "the lookup to wait")
        assert node.run("status", "--json").json["cleared"] == [str(node.m)]
        assert reader.hear() in ("EIO", "ENOTCONN", "ECONNABORTED")
        assert looker.hear() in ("EIO", "ENOTCONN", "ECONNABORTED", "ENOENT")
    assert not node.daemons()
    node.clean()
