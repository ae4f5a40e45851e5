"""No reader that can't be killed, whatever state the daemon is in, and no request that is held for ever."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.fs.mountpoints import clear_stale
from tests.fuse.conftest import WAIT_S, Child, View, child, shown, until
from tests.fuse.test_waiting import waits_for_fuse

HELD = "/model/later.safetensors"
READS = {
    "read": 'fd = os.open(path, os.O_RDONLY); print("at it"); os.pread(fd, 4096, 8192)',
    "direct": 'fd = os.open(path, os.O_RDONLY | os.O_DIRECT); print("at it"); os.pread(fd, 4096, 8192)',
    "mmap": 'fd = os.open(path, os.O_RDONLY); m = mmap.mmap(fd, 0, prot=1); print("at it"); m[70_000]',
    "random-mmap": "fd = os.open(path, os.O_RDONLY); m = mmap.mmap(fd, 0, prot=1); m.madvise(mmap.MADV_RANDOM); "
    'print("at it"); m[70_000]',
}
LOOKS = {
    "stat": 'print("at it"); os.path.exists(top + "/model/" + os.urandom(8).hex())',
    "open": 'print("at it"); os.close(os.open(top + "/model/a/b.bin", os.O_RDONLY))',
    "readdir": 'print("at it"); assert len(os.listdir(top + "/data/many")) == 2500',
    "statfs": 'print("at it"); os.statvfs(top)',
}
# What the kernel lets go of at once when its process is killed; the rest waits for an answer.
KILLABLE = ("read", "mmap")


def doing(what: str) -> str:
    return f'import mmap, os, sys\ntop = sys.argv[1]; path = top + "{HELD}"\n{ {**READS, **LOOKS}[what] }'


@pytest.fixture(params=["upstream", "hand-off"])
def waiting(request: pytest.FixtureRequest, serve: Callable[..., View], tree: Path) -> View:
    """A view whose reads wait: for upstream, and that while it is being handed off."""
    view = serve(*(["--slow-hand-off"] if request.param == "hand-off" else []))
    view.switch("slow", True)
    return view


def begin_hand_off(view: View, tree: Path) -> None:
    """Have the tree beneath the view, and the view still on top."""
    (view.control / "asked").write_text(str(tree))
    (view.control / "asked").rename(view.control / "handoff")
    until(lambda: view.told("beneath"), "the hand-off to be under way")


@pytest.mark.parametrize("what", READS)
def test_a_killed_reader_dies_at_once(
    waiting: View, tree: Path, children: Callable[..., Child], what: str
) -> None:
    reader = children(doing(what), waiting.mountpoint)
    assert reader.line() == "at it"
    until(lambda: waits_for_fuse(reader.process.pid), "the reader to wait")
    if waiting.slow_hand_off:
        begin_hand_off(waiting, tree)
    reader.process.send_signal(signal.SIGKILL)
    assert reader.process.wait(WAIT_S) == -signal.SIGKILL
    if waiting.slow_hand_off:
        waiting.switch("slow", False)
        until(lambda: waiting.told("handed"), "the hand-off")
        waiting.wait_ended()


def test_lookups_never_wait(waiting: View, tree: Path, children: Callable[..., Child]) -> None:
    reader = children(doing("direct"), waiting.mountpoint)
    assert reader.line() == "at it"
    until(lambda: waits_for_fuse(reader.process.pid), "the reader to wait")
    if waiting.slow_hand_off:
        begin_hand_off(waiting, tree)
    for what in LOOKS:
        assert child(doing(what), waiting.mountpoint).strip() == "at it"


@pytest.mark.parametrize("what", READS)
def test_every_read_is_answered_by_its_deadline(
    serve: Callable[..., View], children: Callable[..., Child], what: str
) -> None:
    view = serve("--deadline-s", 0.5)
    view.switch("slow", True)
    reader = children(doing(what), view.mountpoint)
    # EIO; a page that doesn't come is SIGBUS to whoever has it mapped.
    assert reader.process.wait(WAIT_S) == (-signal.SIGBUS if "mmap" in what else 1)
    assert "did not come within" in view.log.read_text()


@pytest.mark.parametrize("what", [*READS, *LOOKS])
def test_a_stopped_daemons_readers_are_freed(view: View, children: Callable[..., Child], what: str) -> None:
    view.switch("slow", True)
    # Until it knows that nobody answers flushes, the kernel asks for one as a killed process closes its files.
    child("import sys; open(sys.argv[1], 'rb').close()", view.mountpoint / "model" / "config.json")
    # It opens its file first, while it still can.
    code = doing(what).replace('print("at it");', 'print("at it"); sys.stdin.readline();')
    reader = children(code, view.mountpoint)
    assert reader.line() == "at it"
    view.process.send_signal(signal.SIGSTOP)
    assert reader.process.stdin is not None
    reader.process.stdin.write("\n")
    reader.process.stdin.flush()
    if what == "open":
        # The kernel has no reason to forget names, but may have to ask for an open.
        until(lambda: waits_for_fuse(reader.process.pid) or reader.process.poll() is not None, "the open")
    else:
        until(lambda: waits_for_fuse(reader.process.pid), "the reader to wait")
    reader.process.send_signal(signal.SIGKILL)
    if what not in KILLABLE:
        # This the kernel holds on to; any command of bdnfs that looks around does what follows.
        assert clear_stale(str(view.mountpoint), stalled=True, timeout_s=0.5)
        assert shown(view.mountpoint) == ""
    assert reader.process.wait(WAIT_S) in (-signal.SIGKILL, 0)


@pytest.mark.parametrize("what", [*READS, *LOOKS])
def test_a_dead_daemons_readers_get_an_error(view: View, children: Callable[..., Child], what: str) -> None:
    view.switch("slow", True)
    reader = children(
        doing(what).replace('print("at it");', 'print("at it"); sys.stdin.readline();'), view.mountpoint
    )
    assert reader.line() == "at it"
    assert reader.process.stdin is not None
    if what in READS:
        reader.process.stdin.write("\n")
        reader.process.stdin.flush()
        until(lambda: waits_for_fuse(reader.process.pid), "the reader to wait")
    view.process.kill()
    view.process.wait(WAIT_S)
    if what in LOOKS:
        reader.process.stdin.write("\n")
        reader.process.stdin.flush()
    # `os.path.exists` says no; everything else fails, a fault by SIGBUS.
    assert reader.process.wait(WAIT_S) == (-signal.SIGBUS if "mmap" in what else 0 if what == "stat" else 1)
