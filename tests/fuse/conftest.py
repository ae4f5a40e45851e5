"""FUSE for real: served by a process of its own, and touched only by short-lived children.

A process that waits for a daemon that never answers can't be interrupted; pytest must not be one.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdnfs.fs.mounts import mount_table, top_mount
from tests.fuse.serving import SIZES, content

WAIT_S = 20.0
ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], object], what: str, limit_s: float = WAIT_S) -> None:
    """Wait for a condition that another process brings about; fail after limit_s."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(0.01)


def child(code: str, *arguments: object, limit_s: float = WAIT_S) -> str:
    """Run Python code in a child and return what it prints; fail where it fails or takes longer."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=WAIT_S)


class Child:
    """A child that goes on: prints one line at a time, and waits for one before each next step."""

    def __init__(self, code: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()  # bounded by pytest's own timeout: a pipe, no mount

    def go_on(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class View:
    """A served mount and the switches of its serving process."""

    def __init__(self, mountpoint: Path, control: Path, *options: object) -> None:
        self.mountpoint, self.control = mountpoint, control
        self.slow_hand_off = "--slow-hand-off" in options
        self.log = control / "log"
        with self.log.open("wb") as log:
            words = ["-m", "tests.fuse.serving", mountpoint, control, *options]
            self.process = subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
        until(lambda: self.told("mounted") or self.process.poll() is not None, "the mount")
        assert self.told("mounted"), self.log.read_text()

    def told(self, name: str) -> bool:
        return (self.control / name).exists()

    def switch(self, name: str, on: bool) -> None:
        if on:
            (self.control / name).touch()
        else:
            (self.control / name).unlink()

    def hand_off(self, tree: Path) -> None:
        asked = self.control / "asked"
        asked.write_text(str(tree))
        asked.rename(self.control / "handoff")
        until(lambda: self.told("handed") or self.told("refused"), "the hand-off")

    def wait_ended(self) -> None:
        until(lambda: self.process.poll() is not None, "the serving process to end")
        assert self.told("ended"), self.log.read_text()
        assert self.process.returncode == 0, self.log.read_text()


def fuse_mounts_below(directory: Path) -> list[str]:
    below = f"{directory}/"
    return [
        m.mountpoint for m in mount_table() if m.mountpoint.startswith(below) and m.fstype == "fuse.bdnfs"
    ]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that anybody may enter, as pytest's own are not; its mounts go with it."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting for real needs root and /dev/fuse")
    place = Path(tempfile.mkdtemp(prefix="bdnfs-test-"))
    place.chmod(0o755)
    yield place
    # Whoever waits for a stopped daemon is freed when that is killed, which serve does.
    while mine := [m for m in mount_table() if m.mountpoint.startswith(f"{place}/")]:
        subprocess.run(["umount", "-l", mine[-1].mountpoint], check=True, timeout=WAIT_S, capture_output=True)
    shutil.rmtree(place)


@pytest.fixture
def serve(place: Path) -> Iterator[Callable[..., View]]:
    """Return a function that serves at a mountpoint (default: place/view)."""
    views: list[View] = []

    def start(*options: object, mountpoint: Path | None = None) -> View:
        where = mountpoint or place / "view"
        where.mkdir(exist_ok=True)
        control = place / f"control-{len(views)}"
        control.mkdir()
        views.append(View(where, control, *options))
        return views[-1]

    yield start
    for view in views:
        if view.process.poll() is None:
            view.process.send_signal(signal.SIGKILL)
        view.process.wait(WAIT_S)


@pytest.fixture
def view(serve: Callable[..., View]) -> View:
    return serve()


@pytest.fixture
def children() -> Iterator[Callable[..., Child]]:
    """Return a function that starts a child that goes on; all end with the test."""
    started: list[Child] = []

    def start(code: str, *arguments: object) -> Child:
        started.append(Child(code, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def tree(place: Path) -> Path:
    """The finished native tree that the view shows; its name is its own, for a scan sees other tests' mounts, too."""
    root = place / "cache" / "trees" / secrets.token_hex(8)
    for path in SIZES:
        file = root / "model" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(path))
    return root


def shown(location: Path) -> str:
    """Return the type of filesystem that one sees at location, or "" where nothing is mounted."""
    mount = top_mount(str(location))
    return mount.fstype if mount else ""
