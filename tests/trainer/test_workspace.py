"""The workspace: packed as it was at the push, whole or not at all, and never beyond its tree."""

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from tests.storage.disks import Disks, fill_up
from tests.trainer.confined import needs_root
from trainer.errors import ConfigError
from trainer.storage.errors import DamagedError, SpaceError
from trainer.storage.workspace import pack_workspace, unpack_workspace

FILES = {
    "config.py": b"project = 1\n",
    "train.py": b"print('x')\n" * 1000,
    "src/model/layers.py": b"class Layer: ...\n",
    "src/" + "deep/" * 30 + "file": b"far down",
    "ünï cödé\n.txt": b"",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return written(tmp_path / "project", FILES)


def written(top: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    return top


def files_of(top: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(top)): path.read_bytes()
        for path in sorted(top.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def test_it_comes_out_as_it_went_in_again_and_again(project: Path, tmp_path: Path) -> None:
    (project / "train.py").chmod(0o755)
    (project / "empty").mkdir()
    (project / "link").symlink_to("src/model/layers.py")
    (project / "src" / "up").symlink_to("../train.py")
    packed = pack_workspace(project / "config.py", tmp_path / "jobs" / "1" / "workspace.tar")
    assert (packed.files, packed.warnings) == (len(FILES), ())
    assert packed.size_bytes == packed.archive.stat().st_size
    written(project, {"train.py": b"changed after the push"})
    for _ in range(2):
        unpack_workspace(packed.archive, packed.digest, tmp_path / "out")
        assert files_of(tmp_path / "out") == FILES
        assert (tmp_path / "out" / "train.py").stat().st_mode & 0o111
        assert (tmp_path / "out" / "empty").is_dir()
        assert os.readlink(tmp_path / "out" / "link") == "src/model/layers.py"
        assert (tmp_path / "out" / "src" / "up").read_bytes() == FILES["train.py"]
        (tmp_path / "out" / "train.py").write_text("changed by the job")
        (tmp_path / "out" / "left behind").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs", "out", "project"]


def test_root_external_and_excluded_directories(tmp_path: Path) -> None:
    root = written(
        tmp_path / "repo",
        {
            "jobs/a/config.py": b"",
            "lib/x.py": b"x",
            "data/big": b"d",
            ".venv/bin/python": b"",
            "lib/data/kept": b"k",
        },
    )
    (root / ".venv" / "outside").symlink_to("/usr/bin/python3")
    shared = written(tmp_path / "shared", {"data/kept too": b"s"})
    packed = pack_workspace(
        root / "jobs/a/config.py",
        tmp_path / "workspace.tar",
        workspace_root="../..",
        external_dirs=["../../../shared", "../../lib"],
        exclude_dirs=["data", "./.venv/", "jobs/b"],
    )
    unpack_workspace(packed.archive, packed.digest, tmp_path / "out")
    assert files_of(tmp_path / "out") == {
        "jobs/a/config.py": b"",
        "lib/x.py": b"x",
        "lib/data/kept": b"k",
        "shared/data/kept too": b"s",
    }
    assert [line.split(":")[0] for line in packed.warnings] == ["external_dirs"]
    assert shared.is_dir()


def pack(project: Path, **fields: object) -> None:
    pack_workspace(project / "config.py", project.parent / "workspace.tar", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"workspace_root": "missing"}, r"workspace_root: .*missing is not there"),
        ({"workspace_root": "train.py"}, r"workspace_root: .*train.py is not a directory"),
        ({"workspace_root": "src"}, r"does not hold .*config.py"),
        ({"external_dirs": ["../missing"]}, r"external_dirs: .*missing is not there"),
        (
            {"external_dirs": ["../other/src"]},
            r"would be src at the top of the workspace, which has one already",
        ),
        ({"external_dirs": [".."]}, r"holds the workspace's root"),
        (
            {"bytes_max": 10_000},
            r"has [0-9,]+ bytes, 10,000 are allowed; the largest in it: src [(].*train.py",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(project: Path, fields: dict[str, object], says: str) -> None:
    written(project.parent / "other", {"src/x": b""})
    with pytest.raises(ConfigError, match=says):
        pack(project, **fields)
    assert not (project.parent / "workspace.tar").exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "../project/train.py", "src/../../outside"])
def test_a_link_out_of_the_tree_is_refused(project: Path, target: str) -> None:
    written(project.parent / "outside", {"x": b""})
    (project / "link").symlink_to(target)
    with pytest.raises(ConfigError, match=r"link: is a link to .*, out of .*exclude_dirs"):
        pack(project)
    pack(project, exclude_dirs=["link"])


def test_a_link_that_leads_out_by_another_is_refused(project: Path) -> None:
    (project.parent / "outside").mkdir()
    (project / "src" / "a").symlink_to("../..")
    with pytest.raises(ConfigError, match="is a link to"):
        pack(project)


def test_pipes_and_sockets_are_left_out_and_said(project: Path, tmp_path: Path) -> None:
    os.mkfifo(project / "pipe")
    packed = pack_workspace(project / "config.py", tmp_path / "workspace.tar")
    assert [line.split(": ")[1].split(",")[0] for line in packed.warnings] == ["is neither file"]
    unpack_workspace(packed.archive, packed.digest, tmp_path / "out")
    assert files_of(tmp_path / "out") == FILES


def test_a_damaged_archive_changes_nothing(project: Path, tmp_path: Path) -> None:
    packed = pack_workspace(project / "config.py", tmp_path / "workspace.tar")
    unpack_workspace(packed.archive, packed.digest, tmp_path / "out")
    with packed.archive.open("r+b") as file:
        file.seek(2000)
        file.write(b"!")
    with pytest.raises(DamagedError, match="push the job again"):
        unpack_workspace(packed.archive, packed.digest, tmp_path / "out")
    assert files_of(tmp_path / "out") == FILES


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize(
    "members",
    [
        [member("../out of it")],
        [member("/absolute")],
        [member("a/../../out of it")],
        [member("link", tarfile.SYMTYPE, ".."), member("link/out of it")],
        [member("link", tarfile.SYMTYPE, "/etc")],
        [member("hard", tarfile.LNKTYPE, "../secret")],
        [member("device", tarfile.CHRTYPE)],
        [member("here", tarfile.SYMTYPE, "."), member("here/inner")],
    ],
)
def test_a_planted_archive_never_leads_out(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    (tmp_path / "secret").write_text("secret")
    archive = tmp_path / "workspace.tar"
    with tarfile.open(archive, "w") as tar:
        for each in members:
            tar.addfile(each)
    with pytest.raises(DamagedError, match="push the job again"):
        unpack_workspace(archive, blake3(archive.read_bytes()).hexdigest(), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "workspace.tar"]


def test_a_file_that_shrinks_while_it_is_packed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment between the look at the tree and the read of the file."""
    shrink = once(lambda: (project / "train.py").write_bytes(b""))
    real = os.open

    def opened(path: object, *rest: object, **how: object) -> int:
        if str(path).endswith("train.py"):
            shrink()
        return real(path, *rest, **how)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(ConfigError, match=r"train.py changed meanwhile; push again"):
        pack(project)
    assert not list(project.parent.glob("workspace.tar*"))


def once(act: Callable[[], object]) -> Callable[[], None]:
    left: Iterator[Callable[[], object]] = iter([act])

    def do() -> None:
        for each in left:
            each()

    return do


@needs_root
def test_a_full_disk_is_said_and_leaves_nothing(project: Path, tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    try:
        disk = disks.tmpfs(1)
        written(project, {"weights": bytes(600_000)})
        fill_up(disk.at, leave_bytes=300_000)
        with pytest.raises(SpaceError, match=r"packing the workspace into .*: no space left on device"):
            pack_workspace(project / "config.py", disk.at / "workspace.tar")
        packed = pack_workspace(project / "config.py", tmp_path / "workspace.tar")
        with pytest.raises(SpaceError, match="unpacking"):
            unpack_workspace(packed.archive, packed.digest, disk.at / "out")
        assert [path.name for path in disk.at.iterdir()] == ["filler"]
    finally:
        disks.close()
