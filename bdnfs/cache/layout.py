"""The cache directory: where everything lies, whose it is, which format it has."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from bdnfs.cache.rows import FORMAT
from bdnfs.cache.storage import storage_error
from bdnfs.core.errors import CacheError, SpaceError

_DIRECTORIES = ("blobs", "trees", "trash", "snapshots", "pins", "writers", "mounts")
TREE_DIRECTORY_MODE = 0o555


class Layout:
    """Paths below one cache directory, made and checked."""

    def __init__(self, directory: Path) -> None:
        self.root = directory
        self.blobs = directory / "blobs"
        self.trees = directory / "trees"
        self.trash = directory / "trash"
        self.snapshots = directory / "snapshots"
        self.pins = directory / "pins"
        self.writers = directory / "writers"
        self.mounts = directory / "mounts"

    def blob(self, blob_id: bytes) -> Path:
        name = blob_id.hex()
        return self.blobs / name[:2] / name

    def tree(self, snapshot_id: str) -> Path:
        return self.trees / snapshot_id

    def prepare(self) -> None:
        """Make what is missing; raise CacheError for another user's cache or a newer format."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_owner()
            for name in _DIRECTORIES:
                (self.root / name).mkdir(exist_ok=True, mode=0o700)
                check_directory(self.root / name)
            self._check_format()
        except FileExistsError as error:
            raise CacheError(
                f"{error.filename}: is not a directory (a symlink is not followed); move it away, then try again"
            ) from error
        except OSError as error:
            found = storage_error(self.root, "made", error)
            if isinstance(found, SpaceError):
                raise found from error
            raise CacheError(
                f"{self.root}: the cache directory can't be used ({error.strerror}); "
                "name another with cache.directory in the config or BDNFS_CACHE_DIR"
            ) from error

    def _check_owner(self) -> None:
        status = os.stat(self.root)
        if status.st_uid != os.geteuid():
            raise CacheError(
                f"{self.root}: this cache belongs to uid {status.st_uid}, you are uid {os.geteuid()}; "
                "a cache is one user's: name another with cache.directory in the config or BDNFS_CACHE_DIR"
            )
        if stat.S_IMODE(status.st_mode) & 0o022 and os.listdir(self.root):
            raise CacheError(
                f"{self.root}: others may write to this directory, and may have put something into it; "
                "name an empty one, or, if you know all that is in it, run chmod 700 on it"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.chmod(self.root, 0o700)

    def _check_format(self) -> None:
        path = self.root / "format"
        try:
            found = read_file(path).decode(errors="replace").strip()
        except FileNotFoundError:
            found = ""
        if not found:  # new, or made just before the power went
            fresh = self.root / f".format.{secrets.token_hex(4)}"
            try:
                with open(fresh, "w") as file:
                    file.write(f"{FORMAT}\n")
                    file.flush()
                    os.fsync(file.fileno())
                fresh.rename(path)
            except OSError:
                fresh.unlink(missing_ok=True)
                raise
        elif not (found.isascii() and found.isdigit() and len(found) < 10) or int(found) > FORMAT:
            raise CacheError(
                f"{self.root}: this cache has format {found[:20]!r}, this bdnfs knows {FORMAT}; "
                "update bdnfs, or name another cache directory"
            )

    def bury(self, path: Path) -> Path | None:
        """Rename path (a file or a directory) into the trash; return where it lies, None if it is gone."""
        grave = self.trash / f"{path.name}.{secrets.token_hex(4)}"
        try:
            try:
                path.rename(grave)
            except PermissionError:
                # Moving a directory writes its "..": for that it must be writable, unless we are root.
                os.chmod(path, 0o700)
                path.rename(grave)
                os.chmod(grave, TREE_DIRECTORY_MODE)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(path, "moved to the trash", error) from error
        return grave

    def unearth(self, grave: Path, path: Path) -> None:
        """Rename what was buried back to path, unless something is there now."""
        try:
            try:
                grave.rename(path)
            except PermissionError:
                os.chmod(grave, 0o700)
                grave.rename(path)
                os.chmod(path, TREE_DIRECTORY_MODE)
        except (FileNotFoundError, FileExistsError):
            pass
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise

    def discard(self, path: Path) -> None:
        """Delete path (a file or a directory that nobody has mounted) so that no half of it is ever seen."""
        grave = self.bury(path)
        if grave is not None:
            empty(grave)


def read_file(path: Path) -> bytes:
    """Return what a file of ours holds; OSError where it is none: a symlink, a pipe, another user's."""
    # A pipe that was planted must not make us wait for whoever might write to it.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise OSError(errno.EINVAL, "not a plain file of yours", str(path))
        return file.read()


def check_directory(path: Path) -> None:
    """Raise CacheError unless path is a directory of ours, not a symlink to one."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise CacheError(
            f"{path}: is not a directory of yours (a symlink is not followed); move it away, then try again"
        )


def empty(path: Path) -> None:
    """Delete path whatever it is; directories of a tree are read-only, so they are opened first."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for directory, _, _ in os.walk(path):
        with contextlib.suppress(FileNotFoundError):  # another process may be deleting the same
            os.chmod(directory, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def delete(graves: Iterable[Path]) -> None:
    """Delete what lies in the trash; outside the index's lock, for it may take its time."""
    for grave in graves:
        with contextlib.suppress(OSError):
            empty(grave)


def disk_free_bytes(path: Path) -> int:
    """Return the bytes an unprivileged user may still write below path."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
