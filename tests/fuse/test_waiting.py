"""Reads that wait: they hold up nobody, die with their process, and end at their deadline."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuse.conftest import WAIT_S, Child, View, child, until

READ_LATER = """
import sys
print("reading")
from tests.fuse.serving import content
assert open(sys.argv[1] + "/model/later.safetensors", "rb").read() == content("later.safetensors")
print("read")
"""
EXPECT_EIO = """
import errno, os, sys
fd = os.open(sys.argv[1] + "/model/later.safetensors", os.O_RDONLY)
try:
    os.pread(fd, 100_000, 4096)
except OSError as error:
    assert error.errno == errno.EIO, error
else:
    raise AssertionError("was read")
"""
EXPECT_SUCCESS = """
import os, sys
from tests.fuse.serving import content
fd = os.open(sys.argv[1] + "/model/later.safetensors", os.O_RDONLY)
assert os.pread(fd, 100_000, 4096) == content("later.safetensors")[4096:104_096]
"""
LOOK_AROUND = """
import os, sys, time
start = time.monotonic()
for directory, _, files in os.walk(sys.argv[1]):
    for name in files[:50]:
        os.stat(os.path.join(directory, name))
assert len(open(sys.argv[1] + "/model/config.json", "rb").read()) == 700
print(time.monotonic() - start)
"""


def test_slow_read_returns_the_bytes_in_the_end(view: View, children: Callable[..., Child]) -> None:
    view.switch("slow", True)
    reader = children(READ_LATER, view.mountpoint)
    assert reader.line() == "reading"
    child(LOOK_AROUND, view.mountpoint)
    view.switch("slow", False)
    assert reader.line() == "read"


def test_killed_reader_dies_at_once(view: View, children: Callable[..., Child]) -> None:
    view.switch("slow", True)
    reader = children(READ_LATER, view.mountpoint)
    assert reader.line() == "reading"
    until(lambda: waits_for_fuse(reader.process.pid), "the reader to wait")
    reader.process.send_signal(signal.SIGKILL)
    reader.process.wait(5)
    child(LOOK_AROUND, view.mountpoint)


def test_three_hundred_waiting_reads_hold_up_no_lookup(view: View, children: Callable[..., Child]) -> None:
    view.switch("slow", True)
    code = """
import os, sys, threading
fd = os.open(sys.argv[1] + "/model/later.safetensors", os.O_RDONLY | os.O_DIRECT)
threads = [threading.Thread(target=os.pread, args=(fd, 4096, n * 4096), daemon=True) for n in range(300)]
for thread in threads:
    thread.start()
print("reading")
threads[-1].join()
"""
    threading_stack = children(f"import threading; threading.stack_size(65536)\n{code}", view.mountpoint)
    assert threading_stack.line() == "reading"
    until(lambda: waiting_threads(threading_stack.process.pid) >= 300, "all to wait")
    assert float(child(LOOK_AROUND, view.mountpoint)) < 10
    threading_stack.process.send_signal(signal.SIGKILL)
    threading_stack.process.wait(5)


def test_deadline_gives_eio_and_a_later_read_succeeds(serve: Callable[..., View]) -> None:
    view = serve("--deadline-s", 0.5)
    view.switch("slow", True)
    child(EXPECT_EIO, view.mountpoint)
    view.switch("slow", False)
    child(EXPECT_SUCCESS, view.mountpoint)
    assert "did not come within" in view.log.read_text()
    assert "model/later.safetensors at byte" in view.log.read_text()


def test_failing_contents_give_eio_and_say_why(view: View) -> None:
    view.switch("broken", True)
    child(EXPECT_EIO, view.mountpoint)
    view.switch("broken", False)
    child(EXPECT_SUCCESS, view.mountpoint)
    assert "not what their digest says" in view.log.read_text()


def test_bug_in_contents_gives_eio_and_the_daemon_lives(view: View) -> None:
    view.switch("buggy", True)
    child(EXPECT_EIO, view.mountpoint)
    view.switch("buggy", False)
    child(EXPECT_SUCCESS, view.mountpoint)
    assert "Traceback" in view.log.read_text()


def test_daemon_goes_on_when_readers_die_before_it_hears_of_them(serve: Callable[..., View]) -> None:
    """pyfuse3 reads /dev/fuse blocking: a request withdrawn in between must not stop its loop."""
    view = serve("--busy-s", 0.05)
    beat = view.control / "beat"
    until(beat.exists, "a first beat")
    code = 'import os, sys\nwhile True: os.path.lexists(f"{sys.argv[1]}/model/{os.urandom(8).hex()}")'
    for number in range(15):
        reader = subprocess.Popen(
            [os.path.realpath("/proc/self/exe"), "-S", "-c", code, str(view.mountpoint)]
        )
        until(lambda reader=reader: waits_for_fuse(reader.pid), "the reader to wait")
        time.sleep(0.013 * (number % 5))  # to hit another moment of the busy loop each time
        reader.kill()
        reader.wait(WAIT_S)
        for _ in range(3):  # it may still have one before the read that would stop it
            before = beat.read_text()
            until(lambda before=before: beat.read_text() not in ("", before), "the next beat", 5)


def test_session_ends_although_reads_still_wait(view: View, children: Callable[..., Child]) -> None:
    view.switch("slow", True)
    reader = children(READ_LATER, view.mountpoint)
    assert reader.line() == "reading"
    until(lambda: waits_for_fuse(reader.process.pid), "the reader to wait")
    subprocess.run(["umount", "-l", view.mountpoint], check=True, timeout=WAIT_S)
    reader.process.send_signal(signal.SIGKILL)
    reader.process.wait(5)
    view.wait_ended()


def waits_for_fuse(pid: int) -> bool:
    return waiting_threads(pid) > 0


def waiting_threads(pid: int) -> int:
    """Return how many of a process's threads wait for an answer (or for a page) from FUSE."""
    count = 0
    for stack in Path(f"/proc/{pid}/task").glob("*/stack"):
        try:
            text = stack.read_text()
        except OSError:
            continue
        count += any(name in text for name in ("request_wait_answer", "folio_wait", "fuse_"))
    return count
