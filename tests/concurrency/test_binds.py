"""Somebody else's mount namespace that has our mount too: as a bind of the mountpoint, or below its parent."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG
from tests.commands.node import WAIT_S, Command, Node, until


class Holder:
    """A mount namespace of its own, kept by a process; what it has of our mount is at `place` inside."""

    def __init__(self, node: Node, how: str, ground: Path) -> None:
        self._node, self.how = node, how
        # A container is given whole mounts, or an rslave bind of the directory that they appear in.
        propagation, source = ("private", ground / "m") if how == "mountpoint" else ("slave", ground)
        inside = node.place / "inside"
        inside.mkdir()
        script = 'mount --rbind "$0" "$1" && echo $$ && exec sleep infinity'
        self._command = node.start_program(
            "unshare", "--mount", "--propagation", propagation, "sh", "-c", script, source, inside
        )
        self._pid = int(until(lambda: self._command.out, "the namespace"))
        self.place = inside if how == "mountpoint" else inside / "m"

    def run(self, *words: object) -> Command:
        return self._node.start_program("nsenter", f"--target={self._pid}", "--mount", "--", *words)

    def kind(self) -> str:
        """Return the type of filesystem at the place inside, "" for none."""
        return self.run("findmnt", "--noheadings", "--output=FSTYPE", self.place).wait(None).out.strip()

    def end(self) -> None:
        self._command.signal(signal.SIGKILL)
        self._command.wait(None)


@pytest.fixture
def ground(node: Node) -> Iterator[Path]:
    """A shared mount, in which the node's mounts are to appear."""
    ground = node.place / "ground"
    ground.mkdir()
    node.m = ground / "m"
    for words in (["mount", "-t", "tmpfs", "ground", ground], ["mount", "--make-shared", ground]):
        subprocess.run(words, check=True, timeout=WAIT_S)
    yield ground
    subprocess.run(["umount", "-l", "-R", ground], check=True, timeout=WAIT_S)


@pytest.fixture(params=["mountpoint", "parent"])
def held(
    request: pytest.FixtureRequest, node: Node, hub: HubServer, ground: Path
) -> Iterator[tuple[Holder, Callable[[], None]]]:
    """A lazy mount that stalls, held in another namespace too, and what lets it go on."""
    hub.faults.add(match="/cdn/", after=1, times=None, stall=True)
    node.configure(upstream={"fetches": 1, "stall": "5s", "attempts": 30})
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    holder = Holder(node, request.param, ground)
    yield holder, hub.faults.clear
    holder.end()


def clean(node: Node, ground: Path, holder: Holder) -> None:
    """As Node.clean, but for the mount that the test made; directories go with the last mount in them."""
    holder.end()
    node.run("status")

    def gone() -> bool:
        left = node.left_behind()
        if left and left[-1] == f"directory {node.m}":
            node.run("status")  # another test's namespace may have had a copy of the mount
        return left == [f"mount at {ground}"]

    until(gone, "all but the ground to be gone", 20)


def test_across_the_hand_off(node: Node, ground: Path, held: tuple[Holder, Callable[[], None]]) -> None:
    holder, go_on = held
    assert holder.kind() == "fuse.bdnfs"
    go_on()
    node.run("wait", node.m)
    node.holds(BIG)
    follows = holder.how == "parent"
    assert (holder.kind() != "fuse.bdnfs") is follows
    same = holder.run("cat", holder.place / "model.safetensors")
    same.process.wait(WAIT_S)
    assert (same.place / "out").read_bytes() == BIG["model.safetensors"]
    if not follows:
        assert node.daemons()  # it serves that bind until it is gone
    node.run("unmount", node.m)
    clean(node, ground, holder)


def test_across_unmount(node: Node, ground: Path, held: tuple[Holder, Callable[[], None]]) -> None:
    holder, _ = held
    reader = holder.run("cat", holder.place / "model.safetensors")
    until(lambda: (reader.place / "out").stat().st_size, "the reader to have begun")
    node.run("unmount", "--force", node.m)
    # The daemon goes, with its upstream: whoever still reads gets an error, at once.
    assert reader.wait(None).code != 0
    assert holder.run("cat", holder.place / "config.json").wait(None).code != 0
    assert holder.kind() == ("" if holder.how == "parent" else "fuse.bdnfs")
    clean(node, ground, holder)


# To tell a stopped daemon from a busy one takes the next command 15 seconds.
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)])
def test_when_the_daemon_is_killed_or_stopped(
    node: Node, ground: Path, held: tuple[Holder, Callable[[], None]], number: int
) -> None:
    holder, go_on = held
    reader = holder.run("cat", holder.place / "model.safetensors")
    until(lambda: (reader.place / "out").stat().st_size, "the reader to have begun")
    (daemon,) = node.daemons()
    os.kill(daemon, number)
    go_on()
    node.run("mount", "hf://acme/big", node.m)
    assert reader.wait(None).code != 0
    node.holds(BIG)
    again = holder.run("cat", holder.place / "model.safetensors")
    if holder.how == "parent":
        assert again.process.wait(WAIT_S) == 0
        assert (again.place / "out").read_bytes() == BIG["model.safetensors"]
    else:
        assert again.wait(None).code != 0  # a bind of what is dead stays dead
    node.run("unmount", node.m)
    clean(node, ground, holder)
