"""What is a directory's alone: symlinks, what is no file, and files of nobody's reach."""

import os
import socket
from pathlib import Path

import pytest

from bdnfs.core.errors import ChangedError, NotFoundError, UpstreamError
from bdnfs.origins.directory import DirectoryOrigin
from bdnfs.origins.sftp import SftpOrigin
from tests.contract.servers import SftpSite


def listed(path: Path) -> dict[str, int]:
    return {entry.path: entry.size for entry in DirectoryOrigin(str(path)).list(None)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "file").write_bytes(b"12345")
    (tmp_path / "source" / "sub" / "file").write_bytes(b"123")
    (tmp_path / "outside").write_bytes(b"secret")
    return tmp_path / "source"


def test_symlinks_inside_are_what_they_lead_to(source: Path) -> None:
    (source / "link").symlink_to("sub/file")
    (source / "absolute").symlink_to(source / "file")
    (source / "directory").symlink_to("sub")
    origin = DirectoryOrigin(str(source))
    entries = {entry.path: entry for entry in origin.list(None)}
    assert {path: entry.size for path, entry in entries.items()} == {
        "file": 5,
        "sub/file": 3,
        "link": 3,
        "absolute": 5,
        "directory/file": 3,
    }
    for path, content in (("link", b"123"), ("directory/file", b"123"), ("absolute", b"12345")):
        into = bytearray(len(content))
        origin.read(None, entries[path], 0, memoryview(into))
        assert into == content


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "..", "nowhere", "dangling/../../outside"])
def test_a_symlink_that_leaves_or_dangles_is_named(source: Path, target: str) -> None:
    (source / "odd-link").symlink_to(target)
    with pytest.raises(UpstreamError, match="'odd-link'"):
        listed(source)


def test_a_loop_of_symlinks_is_named(source: Path) -> None:
    (source / "sub" / "back").symlink_to("..")
    with pytest.raises(UpstreamError, match="'sub/back'"):
        listed(source)


def test_the_source_may_itself_be_a_symlink_or_a_file(source: Path) -> None:
    (source.parent / "name").symlink_to(source)
    assert listed(source.parent / "name") == {"file": 5, "sub/file": 3}
    assert listed(source / "file") == {"file": 5}


def test_what_is_no_file_is_left_out(source: Path) -> None:
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
        assert listed(source) == {"file": 5, "sub/file": 3}
    with pytest.raises(NotFoundError, match="neither"):
        listed(source / "pipe")


@pytest.mark.parametrize("replacement", ["pipe", "symlink", "directory", "bytes", "times"])
def test_what_takes_a_files_place_is_not_read(source: Path, replacement: str) -> None:
    origin = DirectoryOrigin(str(source))
    entry = next(entry for entry in origin.list(None) if entry.path == "file")
    file = source / "file"
    before = file.stat()
    if replacement == "bytes":
        file.write_bytes(b"54321")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif replacement == "times":
        os.utime(file)
    else:
        file.unlink()
        {
            "pipe": lambda: os.mkfifo(file),
            "symlink": lambda: file.symlink_to("../outside"),
            "directory": file.mkdir,
        }[replacement]()
    with pytest.raises(UpstreamError if replacement == "symlink" else ChangedError):
        origin.read(None, entry, 0, memoryview(bytearray(5)))


def test_sftp_follows_symlinks_inside_only(sftp: SftpSite) -> None:
    sftp.put("linked", {"sub/file": b"123", "file": b"12345"})
    place = sftp.directory / "linked"
    (place / "link").symlink_to("sub/file")
    os.mkfifo(place / "pipe")
    origin = sftp.open("linked")
    entries = {entry.path: entry for entry in origin.list(None)}
    assert {path: entry.size for path, entry in entries.items()} == {"file": 5, "sub/file": 3, "link": 3}
    into = bytearray(3)
    origin.read(None, entries["link"], 0, memoryview(into))
    assert into == b"123"
    (place / "bad").symlink_to("/etc/passwd")
    with pytest.raises(UpstreamError, match="'bad'"):
        list(origin.list(None))
    origin.close()
    assert isinstance(origin, SftpOrigin)
