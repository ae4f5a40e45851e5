"""What was opened through FUSE before the hand-off, when the mount is taken away."""

import hashlib
import subprocess
import sys

from tests.commands.node import Command, until
from tests.readers.conftest import Held
from tests.readers.contents import SIZES, content

PATH = "model.safetensors"
# Maps the file and waits; then reads it all.
READER = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print(len(pages), flush=True)
sys.stdin.readline()
print(hashlib.sha256(pages).hexdigest(), flush=True)
"""


def mapping(held: Held) -> Command:
    """Mount, let a reader map a file, hand off; return the reader, which waits for a line."""
    held.mount()
    how = {"stdin": subprocess.PIPE}
    reader = held.node.start_program(sys.executable, "-c", READER, held.node.m / PATH, how=how)
    until(lambda: str(SIZES[PATH]) in reader.out, "the reader")
    held.let_go()
    return reader


def goes_on(reader: Command) -> None:
    process = reader.process
    assert isinstance(process, subprocess.Popen)
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0, f"{process.returncode}: {reader.err}"
    assert hashlib.sha256(content(PATH)).hexdigest() in reader.out


def test_unmount_names_who_reads_what_was_open_before_the_hand_off(held: Held) -> None:
    reader = mapping(held)
    held.node.refused(8, "unmount", held.node.m, says=[f"pid {reader.process.pid}", "--force"])
    assert held.node.shown() == "native"
    goes_on(reader)
    held.unmount()


def test_a_forced_unmount_leaves_what_was_open_before_the_hand_off(held: Held) -> None:
    reader = mapping(held)
    held.node.run("unmount", "--force", held.node.m)
    assert not held.node.shown()
    # Nothing may evict what it reads.
    held.node.run("cache", "evict")
    goes_on(reader)
    until(lambda: not held.node.daemons(), "the daemon to end with the last open file")
    held.node.clean()
