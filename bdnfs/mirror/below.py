"""Files below a directory that others may write to, too: no symlink on the way to one is followed."""

import contextlib
import os
import stat
from collections.abc import Iterator

from bdnfs.core.errors import IntegrityError
from bdnfs.mirror.keys import is_key

# A directory that somebody found empty may go between its making and its use.
_ATTEMPTS = 20
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY


class Below:
    """What lies below root, by paths relative to it. Raises OSError as the kernel does."""

    def __init__(self, root: str) -> None:
        self.root = root

    def directory(self, path: str, *, make: bool = False) -> int:
        """Open a directory, component by component; root itself may be a symlink."""
        fd = os.open(self.root, _DIRECTORY & ~os.O_NOFOLLOW)
        for name in path.split("/") if path else ():
            above = fd
            try:
                fd = _step(above, name, make=make)
            finally:
                os.close(above)
        return fd

    @contextlib.contextmanager
    def place(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the directory that path lies in; yield it and the name in it."""
        above, _, name = path.rpartition("/")
        fd = self.directory(above, make=make)
        try:
            yield fd, name
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """Open a file to be read; IntegrityError where it is anything else, such as a pipe."""
        with self.place(path) as (directory, name):
            fd = os.open(name, _FILE, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise IntegrityError(
                    f"opening {self.root}/{path}: it is not a regular file; remove it, then run: "
                    "bdnfs mirror verify --repair"
                )
            yield fd
        finally:
            os.close(fd)

    def made(self, path: str, mode: int) -> int:
        """Make a file that is not there yet; return it opened to be written."""
        with self.place(path) as (directory, name):
            return os.open(name, _NEW, mode, dir_fd=directory)

    def entries(self, directory: str) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the name and status of each entry whose name may be part of a key."""
        fd = self.directory(directory)
        try:
            with os.scandir(fd) as scan:
                for each in scan:
                    if is_key(each.name):
                        with contextlib.suppress(FileNotFoundError):
                            yield each.name, each.stat(follow_symlinks=False)
        finally:
            os.close(fd)

    def name(self, staged: str, path: str, *, replace: bool = False) -> None:
        """Give a file another name: beside the one it has (link), or instead, over what is there (rename).

        What is missing above path is made. Raises FileExistsError where a link finds something there.
        """
        with self.place(staged) as (source, old):
            for attempt in range(_ATTEMPTS):
                try:
                    with self.place(path, make=True) as (target, new):
                        if replace:
                            os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
                        else:
                            os.link(old, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
                        return
                except FileNotFoundError:
                    if attempt == _ATTEMPTS - 1:
                        raise

    def unlink(self, path: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError), self.place(path) as (directory, name):
            os.unlink(name, dir_fd=directory)

    def prune(self, path: str, top: str) -> None:
        """Remove the directories above path that are empty, up to but not `top`."""
        above = path.rpartition("/")[0]
        while above not in ("", top):
            try:
                with self.place(above) as (directory, name):
                    os.rmdir(name, dir_fd=directory)
            except FileNotFoundError:
                pass
            except OSError:
                return  # not empty, or not ours to remove
            above = above.rpartition("/")[0]


def _step(above: int, name: str, *, make: bool) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=above)
    except FileNotFoundError:
        if not make:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=above)
    return os.open(name, _DIRECTORY, dir_fd=above)
