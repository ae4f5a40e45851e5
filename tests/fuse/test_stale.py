"""Dead and stalled daemons: found without waiting for them, and cleared."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.core.errors import MountError
from bdnfs.fs.mountpoints import clear_stale, health, prepare, stale
from bdnfs.fs.mounts import hold, mount_id_of, top_mount, unmount
from tests.fuse.conftest import WAIT_S, Child, View, child, command, fuse_mounts_below, shown, until


def test_living_daemon_is_alive_and_left_alone(view: View) -> None:
    assert health(str(view.mountpoint)) == "alive"
    assert not stale(str(view.mountpoint))
    assert not clear_stale(str(view.mountpoint), stalled=True)
    assert shown(view.mountpoint) == "fuse.bdnfs"


def test_killed_daemon_leaves_a_stale_mount_that_is_cleared(view: View) -> None:
    child("import os, sys; os.stat(sys.argv[1])", view.mountpoint)  # the kernel remembers this
    view.process.kill()
    view.process.wait(WAIT_S)
    assert stale(str(view.mountpoint))
    assert clear_stale(str(view.mountpoint))
    assert shown(view.mountpoint) == ""
    assert prepare(str(view.mountpoint)) == []


def test_several_stale_mounts_are_cleared_together(view: View, serve: Callable[..., View]) -> None:
    view.process.kill()
    view.process.wait(WAIT_S)
    command("mount", "--bind", view.mountpoint, view.mountpoint)
    assert clear_stale(str(view.mountpoint))
    assert not fuse_mounts_below(view.mountpoint.parent)


def test_stalled_daemon_is_told_from_a_dead_one_and_its_readers_are_freed(
    view: View, children: Callable[..., Child]
) -> None:
    view.process.send_signal(signal.SIGSTOP)
    code = """
import os, sys
print("asking")
try:
    os.stat(sys.argv[1] + "/absent")
except OSError as error:
    print(error.errno)
"""
    waiting = children(code, view.mountpoint)
    assert waiting.line() == "asking"
    assert health(str(view.mountpoint), timeout_s=1) == "stalled"
    assert not stale(str(view.mountpoint), timeout_s=0.5)
    assert not clear_stale(str(view.mountpoint), timeout_s=0.5)
    assert clear_stale(str(view.mountpoint), stalled=True, timeout_s=0.5)
    assert shown(view.mountpoint) == ""
    assert int(waiting.line()) > 0
    view.process.send_signal(signal.SIGCONT)
    view.process.wait(WAIT_S)


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_interrupted_daemon_takes_its_mounts_away(view: View, number: int) -> None:
    other = view.mountpoint.parent / "other"
    other.mkdir()
    command("mount", "--bind", view.mountpoint / "model", other)
    view.process.send_signal(number)
    view.process.wait(WAIT_S)
    assert not fuse_mounts_below(view.mountpoint.parent)


def test_interrupted_daemon_leaves_what_came_on_top(view: View) -> None:
    command("mount", "-t", "tmpfs", "foreign", view.mountpoint)
    view.process.send_signal(signal.SIGINT)
    view.process.wait(WAIT_S)
    assert shown(view.mountpoint) == "tmpfs"
    command("umount", view.mountpoint)
    assert stale(str(view.mountpoint))
    assert "leaving a dead mount behind" in view.log.read_text()


def test_aborted_connection_ends_the_daemon_and_its_mount(view: View) -> None:
    from bdnfs.fs.connection import abort

    mount = top_mount(str(view.mountpoint))
    assert mount is not None
    assert abort(mount)
    until(lambda: view.process.poll() is not None, "the daemon to end")
    assert shown(view.mountpoint) == ""


def test_unmount_takes_the_expected_mount_only(view: View) -> None:
    mount = top_mount(str(view.mountpoint))
    assert mount is not None
    command("mount", "-t", "tmpfs", "foreign", view.mountpoint)
    with pytest.raises(MountError, match="somebody else"):
        unmount(str(view.mountpoint), mount.mount_id)
    assert shown(view.mountpoint) == "tmpfs"
    command("umount", view.mountpoint)
    unmount(str(view.mountpoint), mount.mount_id)
    view.wait_ended()


def test_holding_asks_nothing_of_a_stopped_daemon(view: View) -> None:
    view.process.send_signal(signal.SIGSTOP)
    code = """
import os, sys
from bdnfs.fs.mounts import hold, mount_id_of, top_mount
fd = hold(sys.argv[1])
assert mount_id_of(fd) == top_mount(sys.argv[1]).mount_id
"""
    child(code, view.mountpoint)
    view.process.send_signal(signal.SIGCONT)


def test_serving_where_nothing_can_be_mounted_is_refused(place: Path) -> None:
    control = place / "control"
    control.mkdir()
    (place / "file").touch()
    with pytest.raises(AssertionError, match="Not a directory"):
        View(place / "file", control)


def test_a_plain_umount_is_busy_while_held(view: View) -> None:
    fd = hold(str(view.mountpoint))
    try:
        assert mount_id_of(fd)
        done = subprocess.run(["umount", view.mountpoint], capture_output=True, text=True, timeout=WAIT_S)
        assert "busy" in done.stderr
    finally:
        os.close(fd)
