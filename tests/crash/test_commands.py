"""Commands and daemons killed at every step that a real mount takes: the next command stands on what is left.

Whoever comes next clears it, mounts the right bytes, and takes everything away again.
"""

import os
import signal
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import TINY
from tests.commands.node import ROOT, Command, Node, until
from tests.crash.dying import died_at, environment

SOURCE = "hf://acme/tiny"
FILES = TINY

# Who dies, at which step, having passed it how often.
MOUNT = [
    ("daemon", "resolve:seen", 0),
    ("command", "mount:made", 0),
    ("command", "mount:started", 0),
    ("command", "mount:shown", 0),
    ("daemon", "resolve:listed", 0),
    ("daemon", "index:committing", 1),
    ("daemon", "mount:recorded", 0),
    ("daemon", "mount:daemon-ready", 0),
    ("daemon", "mount:bound", 0),
    ("daemon", "handoff:beneath", 0),
    ("daemon", "handoff:detached", 0),
    ("daemon", "mount:recorded", 1),
]
# The fill's steps again, seen from a mount: test_kills.py has them all, and more often.
FILL = [
    ("daemon", "admit:record-written", 0),
    ("daemon", "index:committed", 2),
    ("daemon", "chunk:committed", 0),
    ("daemon", "blob:sealed", 0),
    ("daemon", "tree:linked", 0),
    ("daemon", "tree:renamed", 0),
]
LAZY = [
    ("daemon", "handoff:beneath", 0),
    ("daemon", "handoff:detached", 0),
    ("daemon", "mount:recorded", 1),
]
HIT = [("command", "mount:made", 0), ("command", "mount:native", 0), ("command", "mount:recorded", 0)]
UNMOUNT = [("unmount:detached", False), ("unmount:removed", False), ("unmount:stopped", True)]
LOCK = ["lock:drafted", "lock:replaced"]
VERIFY = ["verify:found", "blob:forgotten", "verify:sealed"]
REBUILD = ["index:set-aside", "rebuild:entered", "rebuild:buried"]
PIN = ["index:committing", "pin:committed"]
KILLED = {
    *(step for _, step, _ in MOUNT + LAZY + HIT),
    *(step for step, _ in UNMOUNT),
    *LOCK,
    *VERIFY,
    *REBUILD,
    *PIN,
    "snapshot:lost",
}


def start(node: Node, at: str, *words: object, who: str = "command", after: int = 0) -> Command:
    """Start a command that will die, or whose daemon will."""
    return node.start_program(*node.program, *words, **environment(node.place, ROOT, at, who, after))


def dies(node: Node, at: str, *words: object, after: int = 0) -> None:
    """Run a command that dies at the step."""
    start(node, at, *words, after=after).wait(-signal.SIGKILL)
    assert died_at(node.place) == at


def nothing_left(node: Node) -> None:
    """Check that nothing is left; what says nothing of a mount is cleared once it is a minute old."""
    until(lambda: not node.daemons(), "the daemons' end")
    for path in (node.cache / "mounts").iterdir():
        if path.is_dir() and not (path / "record.json").exists():
            os.utime(path, (0, 0))
    node.run("status")
    node.clean()


def mounts_again(node: Node) -> None:
    """Whatever is left: mounted again it stands whole, and goes without a trace."""
    node.run("mount", SOURCE, node.m)
    until(lambda: node.shown() == "native", "the native tree")
    node.holds(FILES)
    # A daemon whose command was killed sees that by itself, and takes its own mount with it.
    until(lambda: len(node.mounts()) == 1, "all other mounts to go")
    node.run("unmount", node.m)
    nothing_left(node)
    until(lambda: not leftovers(node), "what was left in the cache to go")


def leftovers(node: Node) -> list[str]:
    """Drafts and graves that the next eviction has not taken away, and records of nothing."""
    node.run("cache", "evict", "--older-than", "1h")
    found = [*(node.cache / "trash").iterdir(), *node.cache.glob("*/.*")]
    return [str(path) for path in found if path.name != ".made"]


@pytest.mark.parametrize(
    ("who", "step", "after"), [*MOUNT, *(pytest.param(*each, marks=pytest.mark.long) for each in FILL)]
)
def test_a_mount_killed_anywhere_is_mounted_by_the_next(
    node: Node, hub: HubServer, who: str, step: str, after: int
) -> None:
    mounting = start(node, step, "mount", SOURCE, node.m, who=who, after=after)
    ended = mounting.wait(None)
    assert died_at(node.place) == step
    if who == "command":
        assert ended.code == -signal.SIGKILL
    elif after and step == "mount:recorded":
        assert ended.code == 0  # all of it was native by then, and the record said so
    else:
        assert ended.code == 8, ended
        assert node.shown() == ""
    mounts_again(node)


def test_a_mount_killed_before_it_says_that_it_has_bound_goes_on(node: Node, hub: HubServer) -> None:
    dies(node, "mount:shown", "mount", SOURCE, node.m)
    node.run("wait", node.m)
    node.holds(FILES)
    node.run("unmount", node.m)
    nothing_left(node)


@pytest.mark.parametrize(("who", "step", "after"), LAZY)
def test_a_daemon_killed_in_the_hand_off_is_cleared_by_the_next(
    node: Node, hub: HubServer, who: str, step: str, after: int
) -> None:
    start(node, step, "mount", "--lazy", SOURCE, node.m, who=who, after=after).wait(None)
    until(lambda: died_at(node.place), "the daemon to kill itself")
    until(lambda: not node.daemons(), "the daemon's end")
    mounts_again(node)


@pytest.mark.parametrize(("who", "step", "after"), HIT)
def test_a_hit_killed_anywhere_is_mounted_by_the_next(
    node: Node, hub: HubServer, who: str, step: str, after: int
) -> None:
    node.run("prefetch", SOURCE)
    dies(node, step, "mount", SOURCE, node.m, after=after)
    mounts_again(node)


@pytest.mark.parametrize("step", ["mount:made"])
def test_a_run_killed_before_its_command_leaves_nothing(node: Node, hub: HubServer, step: str) -> None:
    node.run("prefetch", SOURCE)
    dies(node, step, "run", SOURCE, node.m, "--", "true")
    nothing_left(node)
    assert (
        node.run("run", SOURCE, node.m, "--", "cat", node.m / "config.json").out.encode()
        == FILES["config.json"]
    )
    nothing_left(node)


@pytest.mark.parametrize(("step", "serving"), UNMOUNT)
def test_an_unmount_killed_anywhere_is_ended_by_the_next(
    node: Node, hub: HubServer, step: str, serving: bool
) -> None:
    if serving:
        hub.faults.add(match="/cdn/", times=None, stall=True)
        node.configure(upstream={"stall": "1m"})
    node.run("mount", *(["--lazy"] if serving else []), SOURCE, node.m)
    dies(node, step, "unmount", node.m)
    hub.faults.clear()
    node.start("unmount", node.m).wait(None)  # there may be nothing left to unmount
    nothing_left(node)
    mounts_again(node)


@pytest.mark.parametrize("step", LOCK)
def test_a_lock_file_is_the_old_or_the_new_one(node: Node, hub: HubServer, step: str) -> None:
    spec = node.spec({"source": SOURCE, "mount_location": str(node.m)})
    node.run("lock", spec)
    lock = node.place / "spec.lock"
    old = lock.read_bytes()
    hub.commit("acme/tiny", {**FILES, "more.txt": b"more"})
    dies(node, step, "lock", spec)
    if step == "lock:replaced":
        assert lock.read_bytes() != old
    else:
        assert lock.read_bytes() == old
    node.run("lock", spec)
    assert lock.read_bytes() != old
    node.run("prefetch", spec, "--locked")


def damage(node: Node) -> Path:
    """Flip a byte of the model's blob, so that only its bytes tell."""
    (blob,) = (path for path in (node.cache / "blobs").glob("*/*") if path.stat().st_size == 70_000)
    status = blob.stat()
    with blob.open("r+b") as file:
        file.seek(40_000)
        byte = file.read(1)
        file.seek(40_000)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    return blob


@pytest.mark.parametrize("step", VERIFY)
def test_a_verify_killed_anywhere_is_done_by_the_next(node: Node, hub: HubServer, step: str) -> None:
    node.run("prefetch", SOURCE)
    if step != "verify:sealed":
        damage(node)
    dies(node, step, "cache", "verify")
    node.run("cache", "verify", code=6 if step == "verify:found" else 0)
    node.run("cache", "verify")
    mounts_again(node)


def test_a_mount_killed_while_it_takes_a_bad_snapshot_back(node: Node, hub: HubServer) -> None:
    node.run("prefetch", SOURCE)
    os.utime(damage(node))  # a mount looks at the time
    dies(node, "snapshot:lost", "mount", SOURCE, node.m)
    mounts_again(node)


@pytest.mark.parametrize("step", REBUILD)
def test_a_rebuild_killed_anywhere_is_done_by_the_next(node: Node, hub: HubServer, step: str) -> None:
    node.run("prefetch", SOURCE)
    (node.cache / "index.broken").touch()
    hub.reset()
    dies(node, step, "cache", "ls")
    mounts_again(node)
    assert hub.bytes_sent <= sum(map(len, FILES.values()))


@pytest.mark.parametrize("step", PIN)
def test_a_pin_is_made_or_not(node: Node, hub: HubServer, step: str) -> None:
    node.run("prefetch", SOURCE)
    # `used` of the hit commits before the pin does.
    after = 0 if step == "pin:committed" else 1
    dies(node, step, "pin", SOURCE, "--until", "1h", after=after)
    (held,) = node.run("cache", "ls", "--json").json
    assert bool(held["pinned"]) == (step == "pin:committed")
    node.run("pin", SOURCE, "--until", "1h")
    (held,) = node.run("cache", "ls", "--json").json
    assert held["pinned"].startswith("pinned until")
