"""A directory, or a single file, of this machine: file:// without anything between it and the kernel."""

import os
import stat
from collections.abc import Iterator

from bdnfs.core.errors import (
    BdnfsError,
    ChangedError,
    CredentialsError,
    NotFoundError,
    UnavailableError,
    UpstreamError,
)
from bdnfs.manifest.model import FileEntry

_PIECE_BYTES = 1 << 20


class DirectoryOrigin:
    """The tree below path, an absolute path. Symlinks are followed as long as they stay inside it.

    Nothing bounds a read of a network filesystem that hangs: the kernel offers no deadline.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.normpath("/" + path.lstrip("/"))
        self.name = f"file://{self._path}"

    def resolve(self, revision: str | None) -> None:
        """There are no revisions."""

    def list(self, revision: str | None) -> Iterator[FileEntry]:
        """Yield every regular file, or the one that path is; sockets, pipes and devices are left out."""
        doing = f"listing {self.name}"
        try:
            root = os.path.realpath(self._path, strict=True)
            found = os.stat(root)
            if stat.S_ISREG(found.st_mode):
                yield _entry(os.path.basename(self._path), found)
            elif stat.S_ISDIR(found.st_mode):
                yield from self._walk(doing, root, "", ())
            else:
                raise NotFoundError(
                    f"{doing}: it is neither a directory nor a regular file; name one of those"
                )
        except (OSError, ValueError) as error:
            raise _error(doing, error) from None

    def read(self, revision: str | None, entry: FileEntry, start: int, into: memoryview) -> None:
        """Fill `into` from byte start of the file."""
        doing = f"reading {entry.path} of {self.name}"
        try:
            fd = self._open(doing, entry)
            try:
                _check(doing, entry, fd)
                got = 0
                while got < len(into):
                    count = os.preadv(fd, [into[got:]], start + got)
                    if not count:
                        raise _changed(doing)
                    got += count
                # Written to while it was read: what was read may be of both versions.
                _check(doing, entry, fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise _error(doing, error) from None

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        """Yield the whole file."""
        buffer = memoryview(bytearray(_PIECE_BYTES))
        for start in range(0, entry.size, _PIECE_BYTES):
            piece = buffer[: min(_PIECE_BYTES, entry.size - start)]
            self.read(revision, entry, start, piece)
            yield piece

    def close(self) -> None:
        """Nothing is held."""

    def _walk(self, doing: str, directory: str, below: str, above: tuple[str, ...]) -> Iterator[FileEntry]:
        with os.scandir(directory) as scan:
            found = sorted(scan, key=lambda each: each.name)
        for each in found:
            name = f"{below}{each.name}"
            target = self._inside(doing, each.path, name) if each.is_symlink() else each.path
            mode = os.stat(target, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                if target in (*above, directory):
                    raise UpstreamError(
                        f"{doing}: the symlink {name!r} leads back to a directory above it; remove the loop"
                    )
                yield from self._walk(doing, target, f"{name}/", (*above, directory))
            elif stat.S_ISREG(mode):
                yield _entry(name, os.stat(target, follow_symlinks=False))

    def _inside(self, doing: str, path: str, name: str) -> str:
        """Return what a symlink leads to; raise UpstreamError if that is outside or not there."""
        root = os.path.realpath(self._path)
        try:
            target = os.path.realpath(path, strict=True)
        except OSError as error:
            raise UpstreamError(
                f"{doing}: the symlink {name!r} leads nowhere ({error.strerror}); remove it"
            ) from None
        if os.path.commonpath((root, target)) != root:
            raise UpstreamError(
                f"{doing}: the symlink {name!r} leads out of the source to {target!r}, which is "
                "not followed; "
                "remove it, or name a directory that holds both as the source"
            )
        return target

    def _open(self, doing: str, entry: FileEntry) -> int:
        root = os.path.realpath(self._path, strict=True)
        path = root if os.path.isfile(root) else os.path.join(root, entry.path)
        # O_NONBLOCK: a pipe put into the file's place must not hold us.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            opened = os.readlink(f"/proc/self/fd/{fd}")
            if os.path.commonpath((root, opened)) != root:
                raise UpstreamError(
                    f"{doing}: it is a symlink out of the source now, which is not followed; remove it"
                )
        except BaseException:
            os.close(fd)
            raise
        return fd


def _entry(path: str, found: os.stat_result) -> FileEntry:
    return FileEntry(path=path, size=found.st_size, identity=_identity(found))


def _identity(found: os.stat_result) -> str:
    # The change time too: cp -p and rsync set the modification time back.
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _check(doing: str, entry: FileEntry, fd: int) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size or _identity(found) != entry.identity:
        raise _changed(doing)


def _changed(doing: str) -> ChangedError:
    return ChangedError(
        f"{doing}: the file is another one now (size, inode or times differ from the snapshot's); "
        "it changed. Mount it again for the new version"
    )


def _error(doing: str, error: OSError | ValueError) -> BdnfsError:
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return NotFoundError(
            f"{doing}: there is no such file or directory; check its spelling and that it is mounted"
        )
    if isinstance(error, PermissionError):
        return CredentialsError(
            f"{doing}: reading is not permitted ({error.strerror}); change its mode or owner"
        )
    return UnavailableError(
        f"{doing}: the filesystem failed ({error.strerror}); try again, or check the disk"
    )
