"""What a mount gives no right to, and what another user gets of a cache: nothing."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG
from tests.commands.node import Node

USER = 1000
WRITES = """
import errno, os, sys
top = sys.argv[1]
tries = {
    "create": lambda: os.open(f"{top}/new", os.O_CREAT | os.O_WRONLY),
    "write": lambda: os.open(f"{top}/config.json", os.O_WRONLY),
    "truncate": lambda: os.truncate(f"{top}/config.json", 0),
    "unlink": lambda: os.unlink(f"{top}/config.json"),
    "rename": lambda: os.rename(f"{top}/config.json", f"{top}/other"),
    "mkdir": lambda: os.mkdir(f"{top}/directory"),
    "symlink": lambda: os.symlink("/etc/passwd", f"{top}/link"),
    "link": lambda: os.link(f"{top}/config.json", f"{top}/link"),
    "mknod": lambda: os.mknod(f"{top}/node", 0o020666, os.makedev(1, 3)),
    "chmod": lambda: os.chmod(f"{top}/config.json", 0o777),
    "chown": lambda: os.chown(f"{top}/config.json", 1000, 1000),
    "utime": lambda: os.utime(f"{top}/config.json", (1, 1)),
    "setxattr": lambda: os.setxattr(f"{top}/config.json", "user.x", b"1"),
}
for name, act in tries.items():
    try:
        act()
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EPERM, errno.EOPNOTSUPP):
            sys.exit(f"{name}: {error}")
    else:
        sys.exit(f"{name} worked")
"""


def options(node: Node) -> set[str]:
    (mount,) = [mount for mount in node.mounts() if mount.mountpoint == str(node.m)]
    return set(mount.options.split(","))


def check_writes(node: Node) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITES, node.m], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_root_can_write_neither_through_fuse_nor_natively(node: Node, hub: HubServer) -> None:
    hub.commit("acme/slow", BIG)
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.run("mount", "--lazy", "hf://acme/slow", node.m)
    assert node.shown() == "fuse"
    assert {"ro", "nosuid", "nodev"} <= options(node)
    check_writes(node)
    hub.faults.clear()
    node.run("unmount", "--force", node.m)
    node.run("mount", "hf://acme/tiny", node.m)
    assert node.shown() == "native"
    assert {"ro", "nosuid", "nodev"} <= options(node)
    check_writes(node)
    node.run("unmount", node.m)
    node.clean()


def test_what_is_planted_in_a_tree_gives_no_rights_through_its_mount(node: Node) -> None:
    """A setuid program and a device node, put into the tree by whoever owns the cache."""
    node.run("mount", "hf://acme/tiny", node.m)
    (tree,) = (node.cache / "trees").iterdir()
    shutil.copy("/usr/bin/id", tree / "id")
    os.chmod(tree / "id", 0o4755)
    os.mknod(tree / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.chmod(tree / "null", 0o666)
    os.chmod(tree, 0o755)
    done = subprocess.run(
        [node.m / "id", "-u"],
        user=USER,
        group=USER,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"{USER}\n"), done.stderr  # 0 were it not nosuid
    with pytest.raises(PermissionError):
        os.open(node.m / "null", os.O_RDONLY)
    os.close(os.open(tree / "null", os.O_RDONLY))  # what it would be without nodev
    for name in ("id", "null"):
        (tree / name).unlink()
    node.run("unmount", node.m)


LOOKS = """
import os, socket, sys
cache, control = sys.argv[1:]
for act in (
    lambda: os.listdir(cache),
    lambda: os.open(f"{cache}/index.lmdb", os.O_RDONLY),
    lambda: os.open(f"{cache}/index.lock", os.O_RDWR),
    lambda: os.stat(control),
    lambda: socket.socket(socket.AF_UNIX).connect(control),
):
    try:
        act()
    except PermissionError:
        continue
    sys.exit("not refused")
"""


def test_another_user_sees_nothing_and_can_not_ask_the_daemon(node: Node, hub: HubServer) -> None:
    hub.commit("acme/slow", BIG)
    hub.faults.add(match="/cdn/", times=None, stall=True)
    node.run("mount", "--lazy", "hf://acme/slow", node.m)
    (control,) = (node.cache / "mounts").glob("*/control.sock")
    # Also where the cache directory itself was opened to all.
    for mode in (0o700, 0o755):
        os.chmod(node.cache, mode)
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-S", "-c", LOOKS, node.cache / ("mounts" if mode == 0o755 else ""), control],
            user=USER, group=USER, extra_groups=[], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{mode:o}: {done.stderr}"
    hub.faults.clear()
    node.run("unmount", "--force", node.m)


@pytest.mark.parametrize("owner", [USER, 12345])
def test_a_cache_of_another_uid_is_refused_and_untouched(node: Node, owner: int) -> None:
    node.cache.mkdir(mode=0o755)
    os.chown(node.cache, owner, owner)
    for words in (("mount", "hf://acme/tiny", node.m), ("status",), ("cache", "verify"), ("unmount", node.m)):
        node.refused(9, *words, says=[f"uid {owner}"])
    assert list(node.cache.iterdir()) == []
    assert not node.m.exists()
