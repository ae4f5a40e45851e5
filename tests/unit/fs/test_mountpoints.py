"""Directories to mount on: made, refused, and removed again."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bdnfs.core.errors import MountError
from bdnfs.fs import mountpoints
from bdnfs.fs.mountpoints import ours, prepare, restore
from bdnfs.fs.mounts import Mount

ROOT = Path(__file__).parents[3]


def test_missing_directories_are_made_and_removed_again(tmp_path: Path) -> None:
    location = tmp_path / "a" / "b" / "c"
    made = prepare(str(location))
    assert made == [str(tmp_path / "a"), str(tmp_path / "a" / "b"), str(location)]
    assert location.is_dir()
    restore(made)
    assert list(tmp_path.iterdir()) == []
    restore(made)


def test_restore_keeps_what_is_in_use(tmp_path: Path) -> None:
    made = prepare(str(tmp_path / "a" / "b"))
    (tmp_path / "a" / "somebody").touch()
    restore(made)
    assert sorted(os.listdir(tmp_path / "a")) == ["somebody"]


def test_an_empty_directory_is_fine_also_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert prepare(str(tmp_path / "real")) == []
    assert prepare(str(tmp_path / "link")) == []
    assert prepare(str(tmp_path / "link" / "below")) == [str(tmp_path / "link" / "below")]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda at: (at / "x").write_text(""), r"x is a file"),
        (lambda at: ((at / "x").mkdir(), (at / "x" / "inside").touch()), r"not empty \('inside' is in it\)"),
        (
            lambda at: (at / "x").symlink_to("nowhere"),
            r"x is a symbolic link to nowhere, which does not exist",
        ),
        (lambda at: (at / "x").symlink_to("x"), r"x: Too many levels|40 symbolic links"),
    ],
    ids=["file", "not empty", "dangling", "loop"],
)
def test_what_is_in_the_way_is_named(tmp_path: Path, build: object, said: str) -> None:
    build(tmp_path)  # type: ignore[operator]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(MountError, match=said):
        prepare(str(tmp_path / "x"))
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_what_is_in_the_way_above_is_named_and_nothing_made(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "x").touch()
    else:
        (tmp_path / "x").symlink_to("nowhere")
    with pytest.raises(MountError, match=f"{tmp_path}/x is a"):
        prepare(str(tmp_path / "x" / "y" / "z"))
    assert os.listdir(tmp_path) == ["x"]


def test_too_long_a_name_leaves_nothing_made(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="File name too long"):
        prepare(str(tmp_path / "a" / ("x" * 256)))
    assert list(tmp_path.iterdir()) == []


def test_a_place_without_the_right_to_make_it_is_named() -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else needs root")
    code = """
import os, sys
from bdnfs.core.errors import MountError
from bdnfs.fs.mountpoints import prepare
os.umask(0); os.chmod(sys.argv[1], 0o755)
os.setgroups([]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
os.chdir(sys.argv[1])
import bdnfs.fs.mounts
try:
    prepare("below/here")
except MountError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as place:  # unlike pytest's own, anybody may enter it
        done = subprocess.run(
            [sys.executable, "-c", code, place], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert f"no right to make it in {place}" in done.stdout, done.stderr
        assert os.listdir(place) == []


def test_a_read_only_place_is_named() -> None:
    with pytest.raises(MountError, match="/proc/bdnfs: "):
        prepare("/proc/bdnfs/here")


def test_another_mount_is_busy_and_named() -> None:
    with pytest.raises(MountError, match=r"proc \(.*\) is mounted there already"):
        prepare("/proc")


@pytest.mark.parametrize(
    ("fstype", "root", "expected"),
    [
        ("fuse.bdnfs", "/", True),
        ("ext4", "/var/cache/bdnfs/trees/ab12", True),
        ("ext4", "/", False),
        ("fuse.sshfs", "/", False),
        ("ext4", "/home/trees", False),
    ],
)
def test_what_is_ours(fstype: str, root: str, expected: bool) -> None:
    assert ours(Mount(1, 2, "0:1", root, "/m", fstype, "s", "ro", "ro")) is expected


def test_a_mount_of_ours_is_not_in_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mount = Mount(1, 2, "0:1", "/", str(tmp_path), "fuse.bdnfs", "s", "ro", "ro")
    monkeypatch.setattr(mountpoints, "top_mount", lambda location: mount)
    (tmp_path / "inside").touch()
    assert prepare(str(tmp_path)) == []
