"""A container that may mount, but has no /dev/fuse: everything is fetched first, and bound then."""

from pathlib import Path

from tests.commands.conftest import CONFIG
from tests.commands.node import Command, Node

HIDE = 'mount --bind "$0" /dev/fuse || exit 99\n'


def without_fuse(node: Node, script: str) -> Command:
    """Run a script where /dev/fuse is an empty file; $1 is the node's place to mount at."""
    empty = Path(node.place, "empty")
    empty.touch()
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", HIDE + script, empty, node.m]
    return node.start_program(*words)


def test_mount_fills_first_and_says_so(node: Node) -> None:
    script = 'bdnfs mount hf://acme/tiny "$1" && cat "$1/config.json" && bdnfs status && bdnfs unmount "$1"'
    done = without_fuse(node, script).wait()
    assert done.out.encode().startswith(CONFIG)
    assert "native" in done.out
    assert done.err.count("/dev/fuse is not the FUSE device; so everything is fetched first") == 1
    assert not node.daemons()
    # What is whole needs no FUSE, and no word about it.
    done = without_fuse(node, 'bdnfs mount --lazy hf://acme/tiny "$1" && bdnfs unmount "$1"').wait()
    assert "fuse" not in done.err
    node.clean()


def test_lazy_is_refused(node: Node) -> None:
    done = without_fuse(node, 'bdnfs mount --lazy hf://acme/tiny "$1"').wait(8)
    assert "--lazy" in done.error
    assert "--device /dev/fuse" in done.error
    node.clean()
