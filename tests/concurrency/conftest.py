"""Several processes at one cache: a Hub and nodes as the commands' tests have them, and containers."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands.conftest import forker, hub, node, nodes, served
from tests.commands.node import WAIT_S, Command, Node, until

__all__ = ["forker", "hub", "node", "nodes", "served"]

# What `docker run` makes, as far as it matters here: the first process in it is pid 1 and sees no other.
_UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--propagation"]


class Container:
    """A PID and a mount namespace with a pid 1 of its own, that shares the node's cache."""

    def __init__(self, node: Node, propagation: str = "private") -> None:
        self._node = node
        self._command: Command = node.start_program(
            *_UNSHARE, propagation, "sh", "-c", "echo ready; exec sleep infinity"
        )
        until(lambda: "ready" in self._command.out, "the container")
        outside = self._command.process.pid
        children = Path(f"/proc/{outside}/task/{outside}/children")
        self.init = int(until(lambda: children.read_text().split(), "its first process")[0])

    def start(self, *words: object) -> Command:
        """Start a program inside."""
        inside = ["nsenter", f"--target={self.init}", "--pid", "--mount", "--", *words]
        return self._node.start_program(*inside)

    def bdnfs(self, *words: object, code: int | None = 0, limit_s: float = WAIT_S) -> str:
        """Run `bdnfs` inside; return what it said, output and then errors."""
        done = self.start(*self._node.program, *words).wait(code, limit_s)
        return done.out + done.err

    def holds(self, files: dict[str, bytes], location: Path) -> None:
        """Check the files at a location inside, through /proc: for native mounts only."""
        for path, content in files.items():
            assert Path(f"/proc/{self.init}/root{location}/{path}").read_bytes() == content, path

    def kill(self) -> None:
        """End it as the kernel ends a container: everybody in it at once."""
        if self._command.process.poll() is None:
            os.kill(self.init, signal.SIGKILL)
        self._command.process.wait(WAIT_S)


@pytest.fixture
def containers(node: Node) -> Iterator[Callable[..., Container]]:
    """Return a function that starts a container on the node; all end with the test."""
    started: list[Container] = []

    def start(propagation: str = "private") -> Container:
        started.append(Container(node, propagation))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], Path]]:
    """Return a function that makes a filesystem of so many bytes, whose use statfs tells exactly."""
    made: list[Path] = []

    def make(size: int) -> Path:
        place = Path(tempfile.mkdtemp(prefix="bdnfs-disk-", dir="/var/tmp"))
        made.append(place)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "bdnfs-test", str(place)]
        subprocess.run(command, check=True, timeout=WAIT_S)
        return place

    yield make
    for place in made:
        while subprocess.run(["mountpoint", "-q", place], timeout=WAIT_S).returncode == 0:
            subprocess.run(["umount", "-l", "-R", place], check=True, timeout=WAIT_S)
        place.rmdir()
