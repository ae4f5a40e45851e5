"""Staging: reflinks where there are any, else symbolic links; whole or not at all."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdnfs.core.errors import MountError, SpaceError
from bdnfs.core.units import TREE_MTIME_S
from bdnfs.fs import stage as module
from bdnfs.fs.stage import stage

FILES = {"config.json": b"{}", "a/b/c.bin": os.urandom(100_000), "empty": b""}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path)


def make_tree(place: Path) -> Path:
    root = place / "trees" / "ab12"
    for path, content in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


@pytest.fixture(params=["btrfs", "xfs"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A filesystem that has reflinks."""
    image, volume = tmp_path / "image", tmp_path / "volume"
    volume.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    kind = request.param
    made = (
        subprocess.run([f"mkfs.{kind}", "-q", str(image)], capture_output=True, check=False)
        if has(kind)
        else None
    )
    if made is None or subprocess.run(["mount", "-o", "loop", image, volume], capture_output=True).returncode:
        pytest.skip(f"no {kind} can be made and mounted here")
    yield volume
    subprocess.run(["umount", volume], check=True, timeout=60)


def has(kind: str) -> bool:
    return any(os.access(f"{place}/mkfs.{kind}", os.X_OK) for place in ("/sbin", "/usr/sbin"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_file_arrives_below_directories_made_for_it(tree: Path, tmp_path: Path) -> None:
    destination = tmp_path / "out" / "model"
    assert stage(str(tree), str(destination)) in ("symlink", "reflink")
    assert contents(destination) == FILES
    assert sorted(os.listdir(tmp_path / "out")) == ["model"]


def test_links_are_absolute_and_survive_another_working_directory(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise module._NoReflinkError

    monkeypatch.setattr(module, "_reflink", refuse)
    monkeypatch.chdir(tmp_path)
    assert stage("trees/ab12", "out") == "symlink"
    monkeypatch.chdir("/")
    assert contents(tmp_path / "out") == FILES
    assert os.readlink(tmp_path / "out" / "a" / "b" / "c.bin") == str(tree / "a" / "b" / "c.bin")


def test_reflinks_are_copies_of_their_own(volume: Path) -> None:
    tree, destination = make_tree(volume), volume / "out"
    destination.mkdir()
    assert stage(str(tree), str(destination)) == "reflink"
    assert contents(destination) == FILES
    file = destination / "config.json"
    assert not file.is_symlink()
    assert file.stat().st_mtime == TREE_MTIME_S
    assert file.stat().st_mode & 0o777 == 0o444
    file.chmod(0o644)
    file.write_bytes(b"changed")
    assert (tree / "config.json").read_bytes() == b"{}"


def test_from_one_filesystem_to_another_links_are_made(volume: Path, tree: Path) -> None:
    assert stage(str(tree), str(volume / "out")) == "symlink"
    assert contents(volume / "out") == FILES
    assert [name for name in os.listdir(volume) if name.startswith(".")] == []


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda at: at.write_text(""), "is no directory"),
        (lambda at: (at.mkdir(), (at / "inside").touch()), "is not empty"),
        (lambda at: at.symlink_to("nowhere"), "is no directory"),
    ],
    ids=["file", "not empty", "link"],
)
def test_what_is_in_the_way_stays(tree: Path, tmp_path: Path, build: object, said: str) -> None:
    build(tmp_path / "out")  # type: ignore[operator]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(MountError, match=said):
        stage(str(tree), str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("error", "kind"),
    [(OSError(28, "No space left on device"), SpaceError), (OSError(5, "Input/output error"), MountError)],
)
def test_a_failure_midway_leaves_nothing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[Exception]
) -> None:
    done: list[str] = []

    def fail_late(source: str, target: str) -> None:
        if done:
            raise error
        done.append(target)
        Path(target).touch()

    monkeypatch.setattr(module, "_reflink", fail_late)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(kind, match=f"staging {tree} at"):
        stage(str(tree), str(tmp_path / "new" / "deep" / "out"))
    assert sorted(os.listdir(tmp_path)) == before


def test_a_tree_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="No such file"):
        stage(str(tmp_path / "gone"), str(tmp_path / "new" / "out"))
    assert os.listdir(tmp_path) == []
