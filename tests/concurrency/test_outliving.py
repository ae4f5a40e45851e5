"""What outlives its parent, and what expires: forked children with their locks, pins with a date."""

import os
import signal
import sys
from pathlib import Path

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, CHUNK
from tests.commands.node import ROOT, Node, until

# A program that forks while another of its threads fetches: the child has that one's locks too. The
# index's is not among them, for it is the forking thread's own; which lock the child has is no chance.
FORKS = """
import os, sys, threading, time
from pathlib import Path
import bdnfs
from bdnfs.cache.locks import lock_until, open_lock_file, unlock
threading.Thread(target=bdnfs.prefetch, args=("hf://acme/big",), daemon=True).start()
print("fetching", flush=True)
sys.stdin.readline()
index = open_lock_file(Path(os.environ["BDNFS_CACHE_DIR"], "index.lock"))
assert lock_until(index, exclusive=True, deadline_s=time.monotonic() + 30)
child = os.fork()
if child:
    unlock(index)
    print(child, flush=True)
time.sleep(600)
"""


def test_a_forked_child_that_outlives_its_parent_is_named(node: Node, hub: HubServer) -> None:
    """It keeps the locks its parent had: others end at their deadline, and go on where it ends."""
    hub.faults.add(match="/cdn/", after=1, times=None, stall=True)
    node.configure(upstream={"fetches": 1, "stall": "1m"})
    reader, writer = os.pipe()
    try:
        program = node.python(FORKS, stdin=reader)
        until(lambda: node.run("cache", "du", "--json").json["present_bytes"] >= CHUNK, "the first chunk")
        os.write(writer, b"\n")
        child = int(until(lambda: program.out.split()[1:], "the fork")[0])
    finally:
        os.close(reader)
        os.close(writer)
    try:
        program.signal(signal.SIGKILL)
        program.wait(-signal.SIGKILL)
        hub.faults.clear()
        hub.reset()
        node.configure()
        assert node.run("cache", "evict").out == "0 B freed\n"
        impatient = [sys.executable, "-m", "tests.concurrency.impatient", "prefetch", "hf://acme/big"]
        said = node.start_program(*impatient, how={"cwd": ROOT}).wait(9).error
        assert f"(pid {child})" in said, said
    finally:
        os.kill(child, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{child}/fd").exists() or not _descriptors(child), "the child's end")
    node.run("run", "hf://acme/big", node.m, "--", "true")
    assert hub.bytes_sent <= BIG_BYTES  # what was filled is kept, its bytes looked at again
    node.clean()


def test_eviction_goes_around_a_reader_whose_run_was_killed(node: Node, hub: HubServer) -> None:
    """Whatever else needs the room, the files stay where the command sees them."""
    node.configure(cache={"capacity": 64 << 20})
    running = node.start("run", "hf://acme/big", node.m, "--", "sh", "-c", "echo $$; exec sleep 600")
    command = int(until(lambda: running.out.split(), "the command")[0])
    running.signal(signal.SIGKILL)
    running.wait(-signal.SIGKILL)
    try:
        hub.commit("acme/large", {"model.safetensors": os.urandom(60 << 20)})
        said = node.refused(4, "prefetch", "hf://acme/large", says=["hf://acme/big", "mounted"])
        assert "Nothing was fetched or evicted" in said
        assert node.run("cache", "evict").out == "0 B freed\n"
        model = Path(f"/proc/{command}/root{node.m}/model.safetensors")
        assert model.read_bytes() == BIG["model.safetensors"]
    finally:
        os.kill(command, signal.SIGKILL)
    until(lambda: node.start("prefetch", "hf://acme/large").wait(None).code == 0, "the pin to go")
    node.run("status")
    node.clean()


def test_a_pin_expires(node: Node) -> None:
    node.run("pin", "hf://acme/tiny", "--until", "1h")
    assert node.run("cache", "evict").out == "0 B freed\n"
    (held,) = node.run("cache", "ls", "--json").json
    assert held["pinned"].startswith("pinned until")
    node.run("pin", "hf://acme/tiny", "--until", "1s")
    until(lambda: node.run("cache", "evict").out != "0 B freed\n", "the pin to expire")
    assert node.run("cache", "ls", "--json").json == []
    node.clean()


def _descriptors(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
