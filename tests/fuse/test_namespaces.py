"""Native binds: in this namespace and in ones of their own, as root and as anybody."""

import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CalledProcessError

import pytest

from bdnfs.core.errors import MountError
from bdnfs.fs import mounts
from bdnfs.fs.mounts import bind, bind_beneath, detach, hold, namespaces, top_mount, unmount
from tests.fuse.conftest import Child, child, command

BIND_ALONE = """
import os, sys
tree, location, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
from bdnfs.core.errors import MountError
from bdnfs.fs import mounts
import ctypes, encodings.idna
if uid:
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable again: what a process that began as uid is
    try:
        mounts.bind(tree, location)
    except MountError as error:
        assert "bdnfs run" in str(error), error
    else:
        raise AssertionError("a user could mount")
mounts.unshare(user=bool(uid))
mounts.bind(tree, location)
assert os.geteuid() == uid and os.getegid() == uid
assert len(open(location + "/model/config.json", "rb").read()) == 700
try:
    open(location + "/model/new", "wb")
except OSError as error:
    assert error.errno == 30, error
print(mounts.top_mount(location).options)
sys.stdin.readline()
"""


@pytest.fixture
def location(place: Path) -> Path:
    location = place / "models"
    location.mkdir()
    return location


@pytest.mark.parametrize("uid", [0, 1000])
def test_bind_in_a_namespace_of_its_own_is_seen_by_the_scan_alone(
    uid: int, tree: Path, location: Path, children: Callable[..., Child]
) -> None:
    name = tree.name
    assert not namespaces().has_root(f"/trees/{name}")
    alone = children(BIND_ALONE, tree, location, uid)
    assert {"ro", "nosuid", "nodev"} <= set(alone.line().split(","))
    assert top_mount(str(location)) is None
    scan = namespaces()
    assert scan.complete
    assert scan.has_root(f"/trees/{tree.name}")
    assert not scan.has_root(f"/trees/{name[:-1]}")
    tree.rename(tree.with_name(f"{name}-renamed"))
    assert not namespaces().has_root(f"/trees/{name}")
    assert namespaces().has_root(f"/trees/{name}-renamed")
    alone.end()
    assert not namespaces().has_root(f"/trees/{name}-renamed")


def test_what_is_mounted_in_a_shared_place_does_not_spread(
    place: Path, tree: Path, children: Callable[..., Child]
) -> None:
    ground = place / "ground"
    ground.mkdir()
    command("mount", "-t", "tmpfs", "ground", ground)
    command("mount", "--make-shared", ground)
    (ground / "models").mkdir()
    alone = children(BIND_ALONE, tree, ground / "models", 0)
    assert alone.line()
    assert top_mount(str(ground / "models")) is None


def unshare_into(file: Path, *words: object) -> None:
    """Run words in a mount namespace that file keeps.

    A namespace can keep only younger ones, which Linux tells by numbers that it deals out to each CPU in blocks: one
    that was made on another CPU may count as older.
    """
    for cpu in sorted(os.sched_getaffinity(0)):
        try:
            command("taskset", "-c", cpu, "unshare", f"--mount={file}", *words)
        except CalledProcessError as error:
            failed = error
        else:
            return
    raise failed


def test_namespace_kept_by_a_file_alone_is_scanned(place: Path, tree: Path, location: Path) -> None:
    keep = place / "keep"
    keep.mkdir()
    command("mount", "--bind", keep, keep)
    command("mount", "--make-private", keep)
    (keep / "ns").touch()
    unshare_into(keep / "ns", "mount", "--bind", tree, location)
    assert top_mount(str(location)) is None
    scan = namespaces()
    assert scan.complete
    assert scan.has_root(f"/trees/{tree.name}")
    command("umount", keep / "ns")
    assert not namespaces().has_root(f"/trees/{tree.name}")


def test_a_file_of_the_tree_mounted_alone_counts(tree: Path, location: Path, place: Path) -> None:
    target = place / "config.json"
    target.touch()
    command("mount", "--bind", tree / "model" / "config.json", target)
    assert namespaces().has_root(f"/trees/{tree.name}")


def test_bind_is_read_only_and_keeps_out_later_mounts_of_the_source(tree: Path, location: Path) -> None:
    bind(str(tree), str(location))
    mount = top_mount(str(location))
    assert mount is not None
    assert {"ro", "nosuid", "nodev"} <= set(mount.options.split(","))
    with pytest.raises(OSError, match="Read-only"):
        (location / "new").touch()
    unmount(str(location), mount.mount_id)
    assert top_mount(str(location)) is None


def test_classic_bind_is_the_same(tree: Path, location: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(tree: str) -> int:
        raise NotImplementedError

    monkeypatch.setattr(mounts, "_clone", missing)
    bind(str(tree), str(location))
    mount = top_mount(str(location))
    assert mount is not None
    assert {"ro", "nosuid", "nodev"} <= set(mount.options.split(","))
    assert mount.root.endswith(f"/trees/{tree.name}")
    with pytest.raises(mounts.BeneathUnsupportedError):
        bind_beneath(str(tree), str(location))


@pytest.mark.parametrize("binding", [bind, bind_beneath])
def test_missing_location_and_missing_tree_are_named(
    binding: Callable[[str, str], None], tree: Path, place: Path
) -> None:
    with pytest.raises(MountError, match=f"{place}/absent: No such file"):
        binding(str(place / "absent"), str(place))
    with pytest.raises(MountError, match=f"{place}/absent: No such file"):
        binding(str(tree), str(place / "absent"))


def test_detaching_twice_is_no_error_and_takes_nothing_else(tree: Path, location: Path) -> None:
    bind(str(tree), str(location))
    fd = hold(str(location))
    bind(str(tree), str(location))
    with pytest.raises(MountError, match="on top"):
        detach(fd)
    top = top_mount(str(location))
    assert top is not None
    unmount(str(location), top.mount_id)
    detach(fd)
    assert top_mount(str(location)) is None
    command("mount", "-t", "tmpfs", "foreign", location)
    detach(fd)
    os.close(fd)
    assert top_mount(str(location)) is not None


def test_scan_without_the_rights_is_not_complete(children: Callable[..., Child]) -> None:
    hidden = """
import os, sys
import encodings.idna
from bdnfs.fs import mounts
mounts.unshare(user=False)
import ctypes
assert ctypes.CDLL(None).mount(b"proc", b"/proc", b"proc", 0, b"hidepid=1") == 0
assert mounts.namespaces().complete
os.setgroups([]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
print(mounts.namespaces().complete)
"""
    assert child(hidden).strip() == "False"
