"""docs/semantics.md, "Waiting"."""

import signal
import time
from pathlib import Path

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, CHUNK
from tests.commands.node import Node, until
from tests.semantics.talker import Talker

MODEL = BIG["model.safetensors"]


def stalled(node: Node, hub: HubServer, deadline: str = "5m") -> None:
    """Mount what will not come until the faults are cleared."""
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.configure(upstream={"stall": "1s", "attempts": 100}, read_deadline=deadline)
    node.run("mount", "--lazy", "hf://acme/big", node.m)


def test_only_reads_wait(node: Node, hub: HubServer) -> None:
    stalled(node, hub)
    top, file = str(node.m), str(node.m / "model.safetensors")
    with Talker(node) as waiting, Talker(node) as other:
        waiting.open(node.m / "model.safetensors")
        waiting.say("os.pread(fd, 10, 100)")
        until(waiting.is_waiting, "the read to wait")
        assert other.ask(f"sorted(os.listdir({top!r}))") == sorted(BIG)
        assert other.ask(f"os.stat({file!r}).st_size") == len(MODEL)
        assert other.ask(f"os.path.exists({top + '/nothing'!r})") is False
        assert other.ask(f"os.statvfs({top!r}).f_bsize") > 0
        other.open(node.m / "model.safetensors")
        assert other.ask("os.pread(fd, 10, 10**12)") == ""  # beyond the end there is nothing to wait for
        assert waiting.is_waiting()
        hub.faults.clear()
        assert waiting.hear() == MODEL[100:110].hex()
    node.run("wait", node.m)
    node.run("unmount", node.m)
    node.clean()


def test_reads_wait_at_most_the_deadline(node: Node, hub: HubServer) -> None:
    stalled(node, hub, deadline="2s")
    with Talker(node) as reader, Talker(node) as mapper:
        reader.open(node.m / "model.safetensors")
        mapper.open(node.m / "model.safetensors")
        mapper.keep("mapped", "mmap.mmap(fd, 0, prot=mmap.PROT_READ)")
        began_s = time.monotonic()
        reader.say("os.pread(fd, 10, 100)")
        mapper.say(f"mapped[{CHUNK + 5}]")
        assert reader.hear() == "EIO"
        assert time.monotonic() - began_s >= 2
        assert mapper.command.process.wait(60) == -signal.SIGBUS
        hub.faults.clear()
        assert reader.ask("os.pread(fd, 10, 100)") == MODEL[100:110].hex()  # a later one may succeed
    node.run("wait", node.m)
    node.run("unmount", node.m)
    node.run("cache", "evict")
    # Long before its deadline a waiting read is in the log.
    stalled(node, hub)
    with Talker(node) as reader:
        reader.open(node.m / "model.safetensors")
        reader.say("os.pread(fd, 10, 100)")
        log = Path(node.status()["log"])
        until(lambda: "model.safetensors at byte" in log.read_text(), "the log to name it")
        assert "a reader has been waiting for 1" in log.read_text()
        assert reader.is_waiting()
        hub.faults.clear()
        assert reader.hear() == MODEL[100:110].hex()
    node.run("wait", node.m)
    node.run("unmount", node.m)
    node.clean()


def test_a_waiting_reader_can_be_killed(node: Node, hub: HubServer) -> None:
    stalled(node, hub)
    for how in ("os.pread(fd, 10, 100)", f"mmap.mmap(fd, 0, prot=mmap.PROT_READ)[{CHUNK}]"):
        reader = Talker(node)
        reader.open(node.m / "model.safetensors")
        reader.say(how)
        until(reader.is_waiting, "the read to wait")
        reader.kill(limit_s=10)
    hub.faults.clear()
    node.run("wait", node.m)
    node.holds(BIG)
    node.run("unmount", node.m)
    node.clean()


def test_demand_goes_first(node: Node, hub: HubServer) -> None:
    chunks = 24
    content = bytes(MODEL[:CHUNK]) * chunks
    hub.commit("acme/long", {"long.bin": content})
    node.configure(upstream={"fetches": 1, "stall": "1m"})
    # One chunk at a time, each taking a while: what is asked for last would come last.
    hub.faults.add(match="/cdn/", times=None, delay_s=0.5)
    node.run("mount", "--lazy", "hf://acme/long", node.m)
    with Talker(node) as reader:
        reader.open(node.m / "long.bin")
        reader.say(f"os.pread(fd, 10, {len(content) - 10})")
        assert reader.hear() == content[-10:].hex()
        assert node.status()["present_bytes"] < len(content) // 2
    node.run("unmount", "--force", node.m)
    node.clean()
