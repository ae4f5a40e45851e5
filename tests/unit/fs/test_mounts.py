"""Reading the mount table, without mounting anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bdnfs.core.errors import MountError
from bdnfs.fs import mounts
from bdnfs.fs.mounts import Mount, Scan, hold, mount_id_of, mount_table, resolve, top_mount

ROOT = Path(__file__).parents[3]


def table(*rows: tuple[int, int, str]) -> list[Mount]:
    return [Mount(i, parent, f"0:{i}", "/", where, "tmpfs", f"m{i}", "rw", "rw") for i, parent, where in rows]


def test_own_table_holds_proc() -> None:
    proc = top_mount("/proc")
    assert proc is not None
    assert proc.fstype == "proc"
    assert proc in mount_table(os.getpid())
    assert top_mount("/proc/self/task") is None


def test_escapes_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = r"36 35 98:0 /mnt\0401\134 /m\303\244\040b rw,noatime master:1 - fuse.bdnfs hf://a/b,\043c rw,user_id=0"
    mount = mounts._parsed(line)
    assert mount.root == "/mnt 1\\"
    assert mount.mountpoint == "/mä b"
    assert mount.fstype == "fuse.bdnfs"
    assert mount.source == "hf://a/b,#c"
    assert mount.options == "rw,noatime"
    assert (mount.mount_id, mount.parent_id, mount.minor) == (36, 35, 0)


def test_the_topmost_of_a_stack_is_found_in_any_order() -> None:
    rows = [(1, 0, "/"), (5, 3, "/a"), (3, 4, "/a"), (4, 1, "/a")]
    for order in (rows, rows[::-1]):
        top = top_mount("/a", table(*order))
        assert top is not None
        assert top.mount_id == 5


def test_a_hidden_mount_is_not_found() -> None:
    rows = table((1, 0, "/"), (2, 1, "/a/b"), (3, 1, "/a"))
    assert top_mount("/a/b", rows) is None
    shown = table((1, 0, "/"), (2, 1, "/a/b"), (3, 1, "/a"), (4, 3, "/a/b"))
    top = top_mount("/a/b", shown)
    assert top is not None
    assert top.mount_id == 4


def test_the_root_itself() -> None:
    rows = table((1, 1, "/"), (2, 1, "/"), (3, 2, "/a"))
    root, below = top_mount("/", rows), top_mount("/a", rows)
    assert root is not None
    assert root.mount_id == 2
    assert below is not None
    assert below.mount_id == 3


def test_resolve_follows_links_in_every_place(tmp_path: Path) -> None:
    real = tmp_path / "real" / "deep"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "last").symlink_to("link/deep")
    assert resolve(str(tmp_path / "link" / "deep")) == str(real)
    assert resolve(str(tmp_path / "last")) == str(real)
    assert resolve(str(tmp_path / "link" / "absent")) == str(tmp_path / "real" / "absent")
    assert resolve("/") == "/"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MountError, match="symbolic links"):
        resolve(str(tmp_path / "loop"))


def test_hold_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="absent: No such file"):
        hold(str(tmp_path / "absent"))
    fd = hold(str(tmp_path))
    assert mount_id_of(fd) in {mount.mount_id for mount in mount_table()}
    os.close(fd)


def test_a_scan_finds_a_tree_and_what_lies_in_it() -> None:
    scan = Scan(frozenset({"/c/trees/ab12", "/c/trees/cd34/x/y.bin", "/"}), True, True)
    assert scan.has_root("/trees/ab12")
    assert scan.has_root("/trees/cd34")
    assert not scan.has_root("/trees/ab1")
    assert not scan.has_root("/trees/b12")
    assert not Scan(frozenset(), True, True).has_root("/trees/ab12")


def test_a_process_that_cant_be_asked_makes_the_scan_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    def barred(pid: str) -> list[Mount]:
        raise PermissionError(13, "barred")

    def gone(pid: str) -> list[Mount]:
        raise ProcessLookupError(3, "gone")

    monkeypatch.setattr(mounts, "_table_of", barred)
    assert not mounts.namespaces().complete
    monkeypatch.setattr(mounts, "_table_of", gone)
    assert mounts.namespaces().complete


def test_import_stays_light() -> None:
    code = """
import sys, ctypes, typing, bdnfs.core.errors
before = set(sys.modules)
import bdnfs.fs.mounts
print(*set(sys.modules) - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert set(done.stdout.split()) == {"bdnfs.fs", "bdnfs.fs.mounts"}
