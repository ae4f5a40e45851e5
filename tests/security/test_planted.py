"""What somebody planted in the cache directory: links that lead outside, pipes that would be waited for.

Whatever a command makes of them, what lies outside is neither read, nor written, nor deleted.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import TINY
from tests.commands.node import Node

VICTIM = b"outside of the cache: read me nowhere\n"


def victim(node: Node) -> Path:
    """Make what must stay as it is: a file, a directory with a file, and names that are not taken."""
    outside = node.place / "outside"
    (outside / "directory").mkdir(parents=True)
    for name in ("file", "directory/inside", "record.json"):
        (outside / name).write_bytes(VICTIM)
        os.chmod(outside / name, 0o640)
        os.utime(outside / name, (1e9, 1e9))
    os.utime(outside / "directory", (1e9, 1e9))
    os.utime(outside, (1e9, 1e9))
    return outside


def seen(outside: Path) -> dict[str, tuple[object, ...]]:
    """Return everything about what is outside."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [outside, *sorted(outside.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_ino, status.st_mode, status.st_mtime_ns, content)
    return found


def everything(node: Node) -> str:
    """Run every command that looks at, fills or tidies the cache; return what they said."""
    said = ""
    for words in (
        ("status",),
        ("cache", "ls"),
        ("cache", "verify"),
        ("mount", "hf://acme/tiny", node.m),
        ("unmount", node.m),
        ("cache", "evict", "--older-than", "0s"),
        ("prefetch", "hf://acme/tiny"),
    ):
        done = node.start(*words).wait(None)
        said += done.out + done.err
    return said


def blob_paths(node: Node) -> list[Path]:
    return sorted((node.cache / "blobs").glob("*/*"))


def plant_everywhere(node: Node, link: Callable[[Path, str], None]) -> None:
    """Plant links at every place below the cache's own directories where a name may be guessed or known."""
    cache = node.cache
    (snapshot,) = (path.name for path in (cache / "snapshots").iterdir())
    for blob in blob_paths(node):
        blob.unlink()
        link(blob, "file")
    for name in ("snapshots", "pins", "trees"):
        found = cache / name / snapshot
        if found.is_dir():
            found.rename(node.place / "old-tree")
        else:
            found.unlink(missing_ok=True)
        link(found, "directory" if name == "trees" else "file")
        link(cache / name / ("b" * 64), "directory")
    link(cache / "trees" / f".{'c' * 64}.01234567.{'d' * 16}", "directory")
    link(cache / "trash" / f"{snapshot}.01234567", "directory")
    link(cache / "trash" / "e", "file")
    link(cache / "writers" / ("d" * 16), "file")
    link(cache / "mounts" / "0a1b2c3d4e5f", "directory")
    (cache / "mounts" / "1a1b2c3d4e5f").mkdir()
    for name in ("record.json", "lock", "daemon.log", "fs"):
        link(cache / "mounts" / "1a1b2c3d4e5f" / name, "record.json")
    for name in (".made", "made.lock", f"{'a' * 24}.made", f"{'a' * 24}.lock"):
        (cache / "mounts" / name).unlink(missing_ok=True)
        link(cache / "mounts" / name, "file")


def test_symlinks_at_every_place_are_not_followed(node: Node, hub: HubServer) -> None:
    node.run("prefetch", "hf://acme/tiny")
    outside = victim(node)
    before = seen(outside)
    plant_everywhere(node, lambda path, name: path.symlink_to(outside / name))
    said = everything(node)
    assert seen(outside) == before
    assert VICTIM.decode().strip() not in said
    assert "is a symlink" in said
    for name in ("made.lock", "1a1b2c3d4e5f/lock"):  # named in errors: moved away as those say
        (node.cache / "mounts" / name).unlink(missing_ok=True)
    for path in (node.cache / "pins").iterdir():
        path.unlink()
    node.run("mount", "hf://acme/tiny", node.m)
    node.holds(TINY)
    node.run("unmount", node.m)
    assert seen(outside) == before


@pytest.mark.parametrize("name", ["index.lmdb", "index.lock", "index.broken", "format"])
@pytest.mark.parametrize("kind", ["symlink", "dangling", "hardlink"])
def test_links_in_place_of_the_caches_own_files(node: Node, name: str, kind: str) -> None:
    node.run("prefetch", "hf://acme/tiny")
    outside = victim(node)
    path = node.cache / name
    path.unlink(missing_ok=True)
    if kind == "hardlink":
        os.link(outside / "file", path)
    else:
        path.symlink_to(outside / ("file" if kind == "symlink" else "not-there"))
    before = seen(outside)
    said = "".join(
        node.start(*words).wait(None).err for words in (("status",), ("prefetch", "hf://acme/tiny"))
    )
    assert seen(outside) == before
    assert VICTIM.decode().strip() not in said
    path.unlink(missing_ok=True)
    (node.cache / "index.lmdb.broken").unlink(missing_ok=True)


def test_pipes_are_not_waited_for(node: Node) -> None:
    """A FIFO where a file belongs would stop whoever opens it to read, for ever."""
    node.run("prefetch", "hf://acme/tiny")
    (snapshot,) = (path.name for path in (node.cache / "snapshots").iterdir())
    directory = node.cache / "mounts" / "0a1b2c3d4e5f"
    directory.mkdir()
    blob = blob_paths(node)[0]
    for path in (blob, node.cache / "snapshots" / snapshot, directory / "record.json",
                 node.cache / "mounts" / f"{'a' * 24}.made"):  # fmt: skip
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    for words in (("status",), ("cache", "ls"), ("cache", "verify"), ("mount", "hf://acme/tiny", node.m)):
        node.start(*words).wait(None)
    node.holds(TINY)
    node.run("unmount", node.m)
    (node.cache / "format").unlink()
    os.mkfifo(node.cache / "format")
    node.refused(9, "status", says=[str(node.cache)])
    (node.cache / "format").unlink()


def test_a_directory_others_may_write_to_is_refused_unless_empty(node: Node) -> None:
    node.cache.mkdir(mode=0o700)
    os.chmod(node.cache, 0o777)
    node.run("status")
    assert stat.S_IMODE(node.cache.stat().st_mode) == 0o700
    for mode in (0o777, 0o770, 0o702):
        os.chmod(node.cache, mode)
        for words in (("status",), ("prefetch", "hf://acme/tiny"), ("cache", "ls")):
            node.refused(9, *words, says=[str(node.cache), "chmod 700"])
        assert stat.S_IMODE(node.cache.stat().st_mode) == mode
    os.chmod(node.cache, 0o755)  # read by others until now, but never written to
    node.run("prefetch", "hf://acme/tiny")
    assert stat.S_IMODE(node.cache.stat().st_mode) == 0o700


def test_nothing_of_a_cache_is_open_to_others(node: Node) -> None:
    """Should the cache directory itself once be opened, what lies in it still is its owner's."""
    node.run("mount", "--lazy", "hf://acme/tiny", node.m)
    node.run("wait", node.m)
    for path in node.cache.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.name == "format", path
    assert all(stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0 for path in (node.cache / "mounts").glob("*/"))
    node.run("unmount", node.m)
