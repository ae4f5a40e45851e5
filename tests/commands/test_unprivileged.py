"""As an ordinary user: `run` in a user namespace, `mount` by fusermount3, `stage`; a cache of one's own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import TINY
from tests.commands.node import ROOT, Node

USER = 1000
# In a mount namespace where /dev/fuse is open to all, as most machines have it.
OPEN_FUSE = """
set -e
mount --make-rprivate /
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
shift
exec setpriv --reuid 1000 --regid 1000 --clear-groups "$@"
"""


def interpreter() -> str | None:
    """An interpreter with what bdnfs needs that anybody may start; the virtual environment may not be."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            done = subprocess.run(
                [candidate, "-c", "import trio, lmdb, pyfuse3, bdnfs.cli"],
                env={"PYTHONPATH": f"{ROOT}:{site}"},
                user=USER,
                group=USER,
                extra_groups=[],
                capture_output=True,
                timeout=60,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    return None


@pytest.fixture
def user(nodes: Callable[..., Node]) -> Node:
    """A node of an ordinary user's."""
    program = interpreter()
    if program is None:
        pytest.skip("no Python here that another user may start and that has what bdnfs needs")
    node = nodes(user=USER)
    node.program = [program, "-m", "bdnfs"]
    site = next(path for path in sys.path if path.endswith("site-packages"))
    node.environment["PYTHONPATH"] = f"{ROOT}:{site}"
    return node


def test_run_in_a_user_namespace(user: Node) -> None:
    view = user.place / "view"
    read = "id -u; cat $HF_HUB_CACHE/models--acme--tiny/snapshots/*/config.json; exit 3"
    done = user.run("run", "hf://acme/tiny", user.m, "--hf-cache", view, "--", "sh", "-c", read, code=3)
    assert not view.exists()
    assert done.out == f"{USER}\n{TINY['config.json'].decode()}"
    user.clean()
    assert (user.cache / "trees").stat().st_uid == USER


def test_stage_needs_no_mount(user: Node) -> None:
    user.run("stage", "hf://acme/tiny", user.m)
    user.holds(TINY)
    shutil.rmtree(user.m)


def test_mount_by_fusermount(user: Node) -> None:
    script = f"""
set -e
{" ".join(user.program)} mount hf://acme/tiny {user.m} --progress none --hf-cache {user.place}/view
cat {user.m}/config.json
cmp {user.m}/config.json {user.place}/view/models--acme--tiny/snapshots/*/config.json
{" ".join(user.program)} status
{" ".join(user.program)} mount hf://acme/tiny {user.m} --progress none
{" ".join(user.program)} unmount {user.m}
! test -e {user.m}
! test -e {user.place}/view
{" ".join(user.program)} status
! grep -q " {user.m} " /proc/self/mountinfo
"""
    (user.place / "dev").mkdir()
    command = Path("/usr/bin/unshare")
    done = subprocess.run(
        [command, "-m", "sh", "-c", OPEN_FUSE, "sh", user.place / "dev", "sh", "-c", script],
        env=user.environment, cwd=user.place, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.startswith(TINY["config.json"].decode())
    assert f"{user.m}  whole, through FUSE" in done.stdout
    assert "nothing is mounted" in done.stdout
    user.clean()


def test_mount_without_any_right_says_what_works(user: Node, hub: HubServer) -> None:
    if os.stat("/dev/fuse").st_mode & 0o006:
        pytest.skip("/dev/fuse is open to all here")
    said = user.refused(8, "mount", "hf://acme/tiny", user.m)
    assert str(user.m) in said or "bdnfs doctor" in said
    user.clean()


def test_places_that_are_not_the_users(user: Node) -> None:
    user.refused(
        8, "run", "hf://acme/tiny", "/not-mine", "--", "true", says=["/not-mine", "no right to make it"]
    )
    assert not os.path.exists("/not-mine")
    user.refused(8, "mount", "hf://acme/tiny", "/not-mine", says=["/not-mine"])
    user.clean()


def test_the_cache_of_another_user_is_refused(user: Node, node: Node) -> None:
    node.run("prefetch", "hf://acme/tiny")
    user.environment["BDNFS_CACHE_DIR"] = str(node.cache)
    for words in (["prefetch", "hf://acme/tiny"], ["status"], ["cache", "ls"]):
        user.refused(9, *words, says=[str(node.cache)])
