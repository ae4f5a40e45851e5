"""A tree: a complete snapshot as a directory of hardlinks to its blobs, as every mount shows it."""

import errno
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bdnfs.cache.blobs import FILE_MODE
from bdnfs.cache.layout import TREE_DIRECTORY_MODE, Layout, empty
from bdnfs.cache.rows import BlobRow, Record
from bdnfs.cache.storage import storage_error
from bdnfs.core.steps import reach
from bdnfs.core.units import MIB, TREE_MTIME_S

# ext4 stops at 65,000 links (EMLINK); some filesystems have none at all.
_NO_LINK = (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP)
_ATTEMPTS = 3


class Tree(NamedTuple):
    """A tree in its place. copies: inodes of files that couldn't be links; copied_bytes: their sizes."""

    path: Path
    copies: tuple[int, ...]
    copied_bytes: int


def build(
    layout: Layout, snapshot_id: str, record: Record, rows: Mapping[bytes, BlobRow], builder: str
) -> Tree:
    """Link the snapshot's tree and put it in its place; every blob must be sealed.

    rows: the blobs' rows, by id. builder: names the process, so that what it leaves half done is found.
    Two processes may do this at once: the first rename wins, the other's tree is dropped. A tree of
    other inodes is moved to the trash. Raises SpaceError or CacheError, and leaves nothing behind.
    """
    tree = layout.tree(snapshot_id)
    draft = layout.trees / draft_name(snapshot_id, builder)
    try:
        copies = _link(layout, draft, record)
        reach("tree:linked")
        for _ in range(_ATTEMPTS):
            try:
                draft.rename(tree)
                reach("tree:renamed")
                return Tree(tree, tuple(copies), sum(copies.values()))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EBUSY):
                    raise
            if damage(layout, snapshot_id, record, rows) is None:
                empty(draft)
                return Tree(tree, (), 0)
            layout.bury(tree)
        raise FileExistsError(errno.EEXIST, "something comes back there whenever it is moved away", str(tree))
    except BaseException as error:
        empty(draft)
        if isinstance(error, OSError):
            raise storage_error(tree, "linked", error) from error
        raise


def draft_name(snapshot_id: str, builder: str) -> str:
    return f".{snapshot_id}.{secrets.token_hex(4)}.{builder}"


def builder_of(name: str) -> str | None:
    """Return who makes the draft of that name; None for a finished tree's name."""
    return name.rpartition(".")[2] if name.startswith(".") else None


def _link(layout: Layout, draft: Path, record: Record) -> dict[int, int]:
    """Link everything below draft; return the sizes of what had to be copied, by inode."""
    draft.mkdir(mode=0o700)
    directories = {""}
    copies: dict[int, int] = {}
    sources: dict[bytes, str] = {}
    for file, blob_id in zip(record.manifest.files, record.blobs, strict=True):
        parent = file.path.rpartition("/")[0]
        if parent not in directories:
            os.makedirs(f"{draft}/{parent}", mode=0o700, exist_ok=True)
            while parent and parent not in directories:
                directories.add(parent)
                parent = parent.rpartition("/")[0]
        path = f"{draft}/{file.path}"
        if file.size == 0:
            _place_empty(path)
            continue
        source = sources.get(blob_id) or str(layout.blob(blob_id))
        try:
            os.link(source, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            copies[_copy(source, path)] = file.size
            sources[blob_id] = path  # the next of these is a link to the copy
    for directory in sorted(directories, reverse=True):
        os.utime(draft / directory, (TREE_MTIME_S, TREE_MTIME_S))
        os.chmod(draft / directory, TREE_DIRECTORY_MODE)
    return copies


def _place_empty(path: str) -> None:
    # A fresh inode: one shared empty blob would soon have more links than a file may have.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, FILE_MODE))
    os.utime(path, (TREE_MTIME_S, TREE_MTIME_S))
    os.chmod(path, FILE_MODE)


def _copy(source: str, path: str) -> int:
    """Copy source to path, sharing blocks where the filesystem can; return the copy's inode."""
    with (
        open(os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb", buffering=0) as whole,
        open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as target,
    ):
        while os.copy_file_range(whole.fileno(), target.fileno(), 64 * MIB):
            pass
        os.fsync(target.fileno())
        inode = os.fstat(target.fileno()).st_ino
    os.utime(path, (TREE_MTIME_S, TREE_MTIME_S))
    os.chmod(path, FILE_MODE)
    return inode


def damage(
    layout: Layout,
    snapshot_id: str,
    record: Record,
    rows: Mapping[bytes, BlobRow],
    copies: tuple[int, ...] = (),
) -> str | None:
    """Return what is wrong with the snapshot's tree, or None.

    Looks at names, kinds, inodes, sizes and times, not at bytes; one stat for each file.
    """
    tree = str(layout.tree(snapshot_id))
    mtime_ns = TREE_MTIME_S * 10**9
    try:
        if not stat.S_ISDIR(os.lstat(tree).st_mode):
            return "is no directory"
        for file, blob_id in zip(record.manifest.files, record.blobs, strict=True):
            status = os.lstat(f"{tree}/{file.path}")
            if (
                status.st_mode != stat.S_IFREG | FILE_MODE
                or status.st_size != file.size
                or status.st_mtime_ns != mtime_ns
            ):
                return f"{file.path}: written to behind the cache's back"
            if file.size:
                row = rows.get(blob_id)
                if (
                    row is None
                    or not row.whole
                    or (status.st_ino != row.inode and status.st_ino not in copies)
                ):
                    return f"{file.path}: is not the blob's file"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None
