"""A process that serves FUSE, for the tests: pytest's own never does.

Usage: python -m tests.fuse.serving MOUNTPOINT CONTROL [--deadline-s S] …

Files and bytes are those of `content` below. CONTROL is a directory the test steers by: the file
`slow` in it holds back every read that has to wait, `broken` fails them with an IntegrityError, `buggy`
with an error nobody foresaw.
`mounted` appears there when the mount stands, `ended` when the session was over by itself. A file
`handoff` holding a tree's path asks for the hand-off, answered by `handed` or `refused`; with
--slow-hand-off it goes no further than `beneath`, with the tree beneath the view, while there is `slow`.
"""

import argparse
import hashlib
import logging
import os
import time
from pathlib import Path

import trio
import trio.lowlevel

from bdnfs.core.errors import BdnfsError, IntegrityError
from bdnfs.core.steps import on_step
from bdnfs.fs.fuse import serve
from bdnfs.fs.handoff import hand_off
from bdnfs.fs.mounts import hold
from bdnfs.fs.tree import Tree
from bdnfs.manifest.model import FileEntry, Manifest

SIZES = {
    "config.json": 700,
    "empty.bin": 0,
    "a.txt": 5,
    "a/b.bin": 70_001,
    "a/c/d.bin": 1 << 20,
    "model.safetensors": 9_000_017,
    "later.safetensors": 3_000_001,
    "größe.txt": 12,
}
MANY = 2500


def content(path: str) -> bytes:
    """Return a file's bytes: made from its name, no 4 KiB like another."""
    seed = hashlib.sha256(path.encode()).digest()
    blocks = (hashlib.sha256(seed + i.to_bytes(8, "big")).digest() for i in range(-(-SIZES[path] // 4096)))
    return b"".join(block * 128 for block in blocks)[: SIZES[path]]


def manifests() -> dict[str, Manifest]:
    files = tuple(FileEntry(path, size) for path, size in SIZES.items())
    many = tuple(FileEntry(f"{number:05}.txt", number) for number in range(MANY))
    return {
        "model": Manifest("test://model", "test", "1", files),
        "data/many": Manifest("test://many", "test", "1", many),
    }


class SteeredContents:
    """Bytes in memory; those of later.safetensors are never there at once."""

    def __init__(self, parts: dict[str, Manifest], control: Path) -> None:
        self._parts, self._control = parts, control
        self._bytes = {path: content(path) for path in SIZES}

    def _put(self, part: str, file: int, offset: int, into: memoryview) -> None:
        path = self._parts[part].files[file].path
        data = self._bytes[path] if part == "model" else path.encode().ljust(file, b".")
        into[:] = data[offset : offset + len(into)]

    def read_now(self, part: str, file: int, offset: int, into: memoryview) -> bool:
        if self._parts[part].files[file].path.startswith("later"):
            return False
        self._put(part, file, offset, into)
        return True

    async def read(self, part: str, file: int, offset: int, into: memoryview) -> None:
        while (self._control / "slow").exists():
            await trio.sleep(0.02)
        if (self._control / "buggy").exists():
            raise ZeroDivisionError("a bug")
        if (self._control / "broken").exists():
            raise IntegrityError("the bytes of this chunk are not what their digest says; mount again")
        self._put(part, file, offset, into)


async def run(arguments: argparse.Namespace) -> None:
    parts = manifests()
    control: Path = arguments.control

    async def mounted() -> None:
        (control / "mounted").touch()
        async with trio.open_nursery() as nursery:
            if arguments.busy_s:
                nursery.start_soon(be_busy, arguments.busy_s)
            nursery.start_soon(hand_off_on_demand)

    async def be_busy(seconds: float) -> None:
        while True:
            time.sleep(seconds)  # noqa: ASYNC251 - to be late for the kernel is the point
            (control / "beat").write_text(str(time.monotonic()))
            await trio.lowlevel.checkpoint()

    async def hand_off_on_demand() -> None:
        location = arguments.location or arguments.mountpoint
        fd = hold(location) if arguments.hold else -1
        while not (control / "handoff").exists():
            await trio.sleep(0.02)
        fd = hold(location) if fd < 0 else fd
        tree = (control / "handoff").read_text()
        try:
            gone = await trio.to_thread.run_sync(hand_off, location, fd, tree)
            (control / "handed").write_text(str(gone))
        except BdnfsError as error:
            (control / "refused").write_text(str(error))
        finally:
            os.close(fd)

    await serve(
        Tree(parts),
        SteeredContents(parts, control),
        arguments.mountpoint,
        read_deadline_s=arguments.deadline_s,
        allow_other=os.geteuid() == 0,
        on_mounted=mounted,
        fsname="test://model,data",
    )
    (control / "ended").touch()


def stop_beneath(control: Path) -> None:
    """Halt the hand-off, in its thread, where the tree is beneath the view and the view still there."""

    def halt(step: str) -> None:
        if step == "handoff:beneath":
            (control / "beneath").touch()
            while (control / "slow").exists():
                time.sleep(0.02)

    on_step(halt)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("control", type=Path)
    parser.add_argument("--deadline-s", type=float, default=30.0)
    parser.add_argument("--busy-s", type=float, default=0.0)
    parser.add_argument("--location", help="where to hand off, if not at MOUNTPOINT")
    parser.add_argument("--hold", action="store_true", help="open the mount's descriptor at once")
    parser.add_argument("--slow-hand-off", action="store_true", help="halt it with the tree beneath the view")
    logging.basicConfig(level=logging.INFO)
    parsed = parser.parse_args()
    if parsed.slow_hand_off:
        stop_beneath(parsed.control)
    trio.run(run, parsed)
