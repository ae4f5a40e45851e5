"""FUSE as anybody, by fusermount3: where /dev/fuse is open to all, as most machines have it."""

import os
from pathlib import Path

import pytest

from bdnfs.fs.mounts import mount_table
from tests.fuse.conftest import child

# Everything is loaded before the rights are given up: the interpreter may lie where uid 1000 may not read.
SERVE_AS_ANYBODY = """
import argparse, ctypes, encodings.ascii, encodings.idna, logging, os, subprocess, sys
from pathlib import Path
import trio
from tests.fuse import serving
os.setgroups([]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
logging.basicConfig(level=logging.INFO)
trio.run(serving.run, argparse.Namespace(
    mountpoint=sys.argv[1], control=Path(sys.argv[2]), busy_s=0, hold=False, location=None, deadline_s=30.0,
))
"""
IN_A_NAMESPACE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from bdnfs.fs import mounts
from bdnfs.fs.mountpoints import health, clear_stale
place, control, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
mounts.unshare(user=False)
node = control / "node"
os.mknod(node, 0o20666, os.makedev(10, 229)); os.chmod(node, 0o666)
subprocess.run(["mount", "--bind", node, "/dev/fuse"], check=True, timeout=20)
anybody = dict(user=1000, group=1000, extra_groups=[])
with open(control / "log", "wb") as log:
    server = subprocess.Popen([sys.executable, "-c", sys.argv[4], place, control], stdout=log, stderr=log)
try:
    deadline = time.monotonic() + 20
    while not (control / "mounted").exists():
        assert time.monotonic() < deadline and server.poll() is None, (control / "log").read_text()
        time.sleep(0.02)
    mount = mounts.top_mount(place)
    assert mount.fstype == "fuse.bdnfs" and "user_id=1000" in mount.super_options, mount
    assert {"ro", "nosuid", "nodev"} <= set(mount.options.split(",")), mount
    read = subprocess.run(["cat", f"{place}/model/config.json"], capture_output=True, timeout=20, **anybody)
    assert len(read.stdout) == 700, read.stderr
    if how == "fusermount3":
        subprocess.run(["fusermount3", "-u", place], check=True, timeout=20, **anybody)
    elif how == "interrupt":
        server.send_signal(signal.SIGINT)
    else:
        server.kill()
    server.wait(20)
    if how == "kill":
        assert health(place) == "dead" and clear_stale(place)
    assert mounts.top_mount(place) is None, (control / "log").read_text()
    assert (control / "ended").exists() == (how == "fusermount3")
finally:
    server.kill()
"""


@pytest.mark.parametrize("how", ["fusermount3", "interrupt", "kill"])
def test_anybody_serves_reads_and_ends(place: Path, how: str) -> None:
    view, control = place / "view", place / "control"
    for directory in (view, control):
        directory.mkdir()
        os.chown(directory, 1000, 1000)
    child(IN_A_NAMESPACE, view, control, how, SERVE_AS_ANYBODY, limit_s=60)
    assert not [mount for mount in mount_table() if mount.mountpoint == str(view)]
