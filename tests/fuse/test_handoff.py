"""The hand-off: the native tree takes over, nobody notices, and the daemon ends with its last file."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bdnfs.core.errors import MountError
from bdnfs.fs import handoff
from bdnfs.fs.mounts import BeneathUnsupportedError, hold, mount_table, top_mount
from tests.fuse.conftest import Child, View, child, command, fuse_mounts_below, shown, until

READ_ACROSS = """
import mmap, os, sys
from tests.fuse.serving import SIZES, content
top = sys.argv[1]
expected = content("model.safetensors")
fd = os.open(f"{top}/model.safetensors", os.O_RDONLY)
assert os.pread(fd, 4096, 0) == expected[:4096]
mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
assert mapped[5_000_000:5_004_096] == expected[5_000_000:5_004_096]
directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
first = os.listdir(directory)
print("open")
sys.stdin.readline()
for offset in range(0, len(expected), 1_000_003):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 70_000, offset) == expected[offset : offset + 70_000]
assert mapped[:] == expected
assert sorted(os.listdir(directory)) == sorted(first) == sorted({path.split("/")[0] for path in SIZES})
inner = os.open("config.json", os.O_RDONLY, dir_fd=directory)
assert len(os.read(inner, 9999)) == 700
print("read")
sys.stdin.readline()
"""
COMPARE = """
import os, sys
from pathlib import Path
from tests.fuse.serving import SIZES, content
for path in SIZES:
    assert (Path(sys.argv[1]) / path).read_bytes() == content(path), path
"""


@pytest.fixture(params=["private", "shared", "slave"])
def ground(request: pytest.FixtureRequest, place: Path) -> Path:
    """A mount to mount on, whose own mounts spread or don't, or come from elsewhere."""
    ground = place / "ground"
    ground.mkdir()
    command("mount", "-t", "tmpfs", "ground", ground)
    if request.param == "slave":
        (place / "master").mkdir()
        command("mount", "--make-shared", ground)
        command("mount", "--bind", ground, place / "master")
    command("mount", f"--make-{request.param}", ground)
    return ground


@pytest.fixture(params=["direct", "bind"])
def located(
    request: pytest.FixtureRequest, ground: Path, serve: Callable[..., View], tree: Path
) -> tuple[View, Path, Path]:
    """A view, where it is to be handed off, and the tree for it: the mount itself, or a bind of a part."""
    location = ground / "models"
    location.mkdir()
    if request.param == "direct":
        return serve(mountpoint=location), location, tree
    (ground / "hidden").mkdir()
    view = serve("--location", location, mountpoint=ground / "hidden")
    command("mount", "--bind", ground / "hidden" / "model", location)
    command("umount", "-l", ground / "hidden")
    return view, location, tree / "model"


def part_of(location: Path) -> Path:
    return location / "model" if (location / "model").exists() else location


def test_readers_go_on_and_lookups_move_over(
    located: tuple[View, Path, Path], children: Callable[..., Child]
) -> None:
    view, location, tree = located
    top = location if tree.name == "model" else location / "model"
    reader = children(READ_ACROSS, top)
    assert reader.line() == "open"
    view.hand_off(tree)
    assert view.told("handed"), view.log.read_text()
    mount = top_mount(str(location))
    assert mount is not None
    assert mount.root.endswith(str(tree))
    assert {"ro", "nosuid", "nodev"} <= set(mount.options.split(","))
    child(COMPARE, top)
    assert not fuse_mounts_below(location.parent)
    assert view.process.poll() is None
    assert reader.go_on() == "read"
    assert not view.told("ended")
    reader.end()
    view.wait_ended()
    child(COMPARE, top)


def test_a_working_directory_inside_keeps_relative_names(
    located: tuple[View, Path, Path], children: Callable[..., Child]
) -> None:
    view, location, tree = located
    code = """
import os, sys
from tests.fuse.serving import content
os.chdir(sys.argv[1])
print("inside")
sys.stdin.readline()
assert open("a/b.bin", "rb").read() == content("a/b.bin")
assert "config.json" in os.listdir(".")
try:
    print(os.getcwd())
except FileNotFoundError:
    print("no path")
sys.stdin.readline()
os.chdir("/")
print("outside")
sys.stdin.readline()
"""
    inside = children(code, location if tree.name == "model" else location / "model")
    assert inside.line() == "inside"
    view.hand_off(tree)
    assert view.told("handed"), view.log.read_text()
    assert inside.go_on() == "no path"
    assert view.process.poll() is None
    assert inside.go_on() == "outside"
    view.wait_ended()


def test_daemon_ends_at_once_when_nothing_is_open(located: tuple[View, Path, Path]) -> None:
    view, location, tree = located
    view.hand_off(tree)
    view.wait_ended()
    assert [m.mountpoint for m in mount_table() if m.mountpoint == str(location)] == [str(location)]


@pytest.mark.parametrize("held", [True, False])
def test_foreign_mount_on_top_stays_on_top(
    ground: Path, serve: Callable[..., View], tree: Path, *, held: bool
) -> None:
    location = ground / "models"
    location.mkdir()
    view = serve(*(["--hold"] if held else []), mountpoint=location)
    fd = hold(str(location))
    command("mount", "-t", "tmpfs", "foreign", location)
    (location / "theirs").touch()
    try:
        if held:
            view.hand_off(tree)
            assert view.told("handed"), (view.control / "refused").read_text()
        else:
            assert handoff.hand_off(str(location), fd, str(tree))
    finally:
        os.close(fd)
    assert shown(location) == "tmpfs"
    assert os.listdir(location) == ["theirs"]
    assert not fuse_mounts_below(ground)
    command("umount", location)
    child(COMPARE, location / "model")
    if held:
        view.wait_ended()


def test_without_a_way_beneath_the_tree_goes_on_top(
    ground: Path, serve: Callable[..., View], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tree: str, location: str) -> None:
        raise BeneathUnsupportedError("an older kernel")

    monkeypatch.setattr(handoff, "bind_beneath", refuse)
    location = ground / "models"
    location.mkdir()
    view = serve(mountpoint=location)
    fd = hold(str(location))
    try:
        assert not handoff.hand_off(str(location), fd, str(tree))
    finally:
        os.close(fd)
    child(COMPARE, location / "model")
    command("umount", location)
    assert shown(location) == "fuse.bdnfs"
    command("umount", location)
    view.wait_ended()


def test_other_namespaces_that_follow_get_the_tree(
    place: Path, serve: Callable[..., View], tree: Path, children: Callable[..., Child]
) -> None:
    ground = place / "ground"
    (ground / "models").mkdir(parents=True)
    command("mount", "-t", "tmpfs", "ground", ground)
    command("mount", "--make-shared", ground)
    location = ground / "models"
    location.mkdir()
    view = serve(mountpoint=location)
    code = """
import os, sys
from bdnfs.fs.mounts import unshare, top_mount
unshare(user=False)
print(top_mount(sys.argv[1]).fstype)
sys.stdin.readline()
print(top_mount(sys.argv[1]).root)
"""
    other = children(code, location)
    assert other.line() == "fuse.bdnfs"
    view.hand_off(tree)
    assert other.go_on().endswith(f"/trees/{tree.name}")
    view.wait_ended()


def test_a_mount_that_is_gone_is_not_handed_off(view: View, tree: Path) -> None:
    fd = hold(str(view.mountpoint))
    try:
        command("umount", "-l", view.mountpoint)
        with pytest.raises(MountError, match="its FUSE mount is gone"):
            handoff.hand_off(str(view.mountpoint), fd, str(tree))
    finally:
        os.close(fd)
    assert shown(view.mountpoint) == ""
    view.wait_ended()


def test_a_tree_that_is_not_there_leaves_the_view_as_it_was(view: View, place: Path) -> None:
    view.hand_off(place / "nowhere")
    assert "No such file" in (view.control / "refused").read_text()
    assert shown(view.mountpoint) == "fuse.bdnfs"
    child(COMPARE, view.mountpoint / "model")


def test_lookups_never_find_neither(view: View, tree: Path, children: Callable[..., Child]) -> None:
    code = """
import os, select, sys
print("looking")
count = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    assert os.stat(sys.argv[1] + "/model/config.json").st_size == 700
    assert not os.path.exists(sys.argv[1] + f"/model/{count}")
    count += 1
print(count)
"""
    looking = children(code, view.mountpoint)
    assert looking.line() == "looking"
    view.hand_off(tree)
    view.wait_ended()
    assert int(looking.go_on()) > 0


def test_the_watch_sees_a_lazy_unmount(view: View, children: Callable[..., Child]) -> None:
    mount = top_mount(str(view.mountpoint))
    assert mount is not None
    code = """
import sys, trio
from bdnfs.fs.watch import unmounted
print("watching")
trio.run(unmounted, {int(sys.argv[1])})
print("gone")
"""
    watching = children(code, mount.mount_id)
    assert watching.line() == "watching"
    until(
        lambda: "epoll_wait" in Path(f"/proc/{watching.process.pid}/stack").read_text(), "the watch to wait"
    )
    subprocess.run(["umount", "-l", view.mountpoint], check=True, timeout=10)
    assert watching.line() == "gone"
