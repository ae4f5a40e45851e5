"""A mirror in a directory: objects are files at their keys; what bdnfs keeps beside them lies in `.bdnfs`.

    <key>                  the object, 0444; whole and on the disk from the moment it has this name
    .bdnfs/types/<key>     its content type, there before the object is
    .bdnfs/staging/<hex>   what is being written
    .bdnfs/lock            byte n is locked by who changes a key that hashes to n

No component of a key begins with a dot. On NFS all of this holds as long as its locks work; without them
`absent` still does (link), a conditional replace doesn't. Nothing bounds a call that the kernel hangs in.
"""

import contextlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NoReturn

from blake3 import blake3

from bdnfs.cache.locks import try_lock
from bdnfs.core.errors import CacheError, IntegrityError, NotFoundError, UnavailableError, UpstreamError
from bdnfs.core.steps import reach
from bdnfs.core.syncing import syncfs
from bdnfs.mirror.below import Below
from bdnfs.mirror.directory_errors import told
from bdnfs.mirror.keys import check_key, check_prefix
from bdnfs.mirror.store import Expected, Held, Listed

# What an object is that has lost its sidecar: what every object store says of one that was given no type.
UNTYPED = "application/octet-stream"
_TYPES, _STAGING, _LOCK = ".bdnfs/types", ".bdnfs/staging", ".bdnfs/lock"
_TYPE_BYTES_MAX = 256
_LOCK_S = 30.0
# Whoever wrote it is dead: no object takes a day.
_STALE_S = 24 * 3600.0


class DirectoryStore:
    """The objects below root, an absolute path; it is made with the first object, its parent is not."""

    def __init__(self, root: str) -> None:
        self._below = Below(root)
        self._lock = threading.Lock()
        self._sync_fd: int | None = None
        self._lost = False
        self.name = root

    def get(self, key: str, bytes_max: int) -> Held:
        """Return a small object."""
        with told(f"reading {check_key(key)} of {self.name}"), self._below.opened(key) as fd:
            size = os.fstat(fd).st_size
            if size > bytes_max:
                _damaged(f"reading {key} of {self.name}", f"{size} bytes long, more than {bytes_max}")
            data = bytearray(size)
            self._read(fd, key, memoryview(data))
            return Held(bytes(data), self._type(key), blake3(data).hexdigest())

    def fill(self, key: str, into: memoryview) -> str:
        """Fill `into` with all of an object."""
        with told(f"reading {check_key(key)} of {self.name}"), self._below.opened(key) as fd:
            self._read(fd, key, into)
            return self._type(key)

    def size(self, key: str) -> int | None:
        """Return an object's size."""
        with told(f"looking for {check_key(key)} in {self.name}"):
            try:
                with self._below.opened(key) as fd:
                    return os.fstat(fd).st_size
            except FileNotFoundError:
                return None

    def put(self, key: str, data: bytes | memoryview, content_type: str, expected: Expected) -> bool:
        """Write an object: its bytes and their sync first, then its type, then its name."""
        with told(f"writing {check_key(key)} to {self.name}"):
            self._prepare()
            if expected == "absent" and self.size(key) is not None:
                return False  # before its bytes are written for nothing
            staged = self._stage(memoryview(data))
            reach("mirror:object-staged")
            try:
                with self._locked(key):
                    return self._as_expected(key, expected) and self._show(
                        staged, key, content_type, expected
                    )
            finally:
                self._below.unlink(staged)

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield what lies below prefix; what is no object of ours is left out."""
        check_prefix(prefix)
        below = [prefix.removesuffix("/")]
        if not os.path.isdir(self.name):
            raise NotFoundError(
                f"listing {self.name}: there is no such directory; check its name and its mount"
            )
        while below:
            directory = below.pop()
            with told(f"listing {self.name}"), contextlib.suppress(FileNotFoundError):
                for name, found in self._below.entries(directory):
                    key = f"{directory}/{name}" if directory else name
                    if stat.S_ISDIR(found.st_mode):
                        below.append(key)
                    elif stat.S_ISREG(found.st_mode):
                        yield Listed(key, found.st_size, found.st_mtime)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, then their types, then the directories that are empty now."""
        for key in keys:
            with told(f"deleting {check_key(key)} from {self.name}"):
                if self.size(key) is not None:
                    self._prepare()
                    with self._locked(key):
                        self._below.unlink(key)
                        self._below.unlink(f"{_TYPES}/{key}")
                self._below.prune(key, "")
                self._below.prune(f"{_TYPES}/{key}", _TYPES)

    def flush(self) -> None:
        """Sync the filesystem: the objects' bytes are on the disk already, their names are now."""
        if self._sync_fd is None:
            return
        if not self._lost:
            try:
                syncfs(self._sync_fd)
            except OSError:
                # The kernel says so once; what was lost stays lost.
                self._lost = True
        if self._lost:
            raise UpstreamError(
                f"{self.name}: its filesystem lost writes when it was synced; check the disk, then run "
                "bdnfs mirror verify --repair"
            )

    def close(self) -> None:
        """Let go; calls after it are errors of ours."""
        if self._sync_fd is not None:
            os.close(self._sync_fd)
            self._sync_fd = None

    # ---- places -------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Before the first write: make what is missing, sweep what the dead left, open what `flush` syncs."""
        with self._lock:
            if self._sync_fd is not None:
                return
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.name)
            for place in (_TYPES, _STAGING):
                os.close(self._below.directory(place, make=True))
            for name, found in self._below.entries(_STAGING):
                if time.time() - found.st_mtime > _STALE_S:
                    self._below.unlink(f"{_STAGING}/{name}")
            # Before the first write: then it sees every write error.
            self._sync_fd = self._below.directory("")

    # ---- writing ------------------------------------------------------------------------------------

    def _stage(self, data: memoryview) -> str:
        """Write data to a file of its own and have it on the disk; return where it lies."""
        path = f"{_STAGING}/{secrets.token_hex(16)}"
        fd = self._below.made(path, 0o444)
        try:
            rest = data.cast("B")
            while rest:
                rest = rest[os.write(fd, rest) :]
            # A rerun after a power cut takes what has a name for whole.
            os.fdatasync(fd)
        except BaseException:
            self._below.unlink(path)
            raise
        finally:
            os.close(fd)
        return path

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Be the only one who changes this key; UnavailableError if that takes too long."""
        byte = int.from_bytes(blake3(key.encode()).digest(7), "big")
        with self._below.place(_LOCK) as (directory, name):
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666, dir_fd=directory)
        try:
            deadline_s, pause_s = time.monotonic() + _LOCK_S, 0.001
            while not self._try_lock(fd, byte):
                if time.monotonic() >= deadline_s:
                    raise UnavailableError(
                        f"writing {key} to {self.name}: another process has been changing it for "
                        f"{_LOCK_S:.0f} s; end it (fuser {self.name}/{_LOCK} names it), or try again"
                    )
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, 0.02)
            yield
        finally:
            os.close(fd)

    def _try_lock(self, fd: int, byte: int) -> bool:
        try:
            return try_lock(fd, exclusive=True, start=byte, length=1)
        except CacheError:
            raise UpstreamError(
                f"writing to {self.name}: its filesystem has no locks; mount it with them (NFS: without nolock), "
                "or name another directory"
            ) from None

    def _as_expected(self, key: str, expected: Expected) -> bool:
        if expected == "any":
            return True
        try:
            with self._below.opened(key) as fd:
                return expected != "absent" and _digest(fd) == expected
        except FileNotFoundError:
            return expected == "absent"

    def _show(self, staged: str, key: str, content_type: str, expected: Expected) -> bool:
        # A key's type doesn't change but in a repair: between the two steps the old bytes may have the new type.
        self._set_type(key, content_type)
        reach("mirror:object-typed")
        try:
            self._below.name(staged, key, replace=expected != "absent")
        except FileExistsError:
            return False
        reach("mirror:object-shown")
        return True

    def _set_type(self, key: str, content_type: str) -> None:
        if self._type(key) == content_type and content_type != UNTYPED:
            return
        # Synced like the object: some filesystems (btrfs) would bring the object's name to the disk, and not this one.
        staged = self._stage(memoryview(content_type.encode()))
        try:
            self._below.name(staged, f"{_TYPES}/{key}", replace=True)
        finally:
            self._below.unlink(staged)

    # ---- reading ------------------------------------------------------------------------------------

    def _read(self, fd: int, key: str, into: memoryview) -> None:
        doing, size = f"reading {key} of {self.name}", os.fstat(fd).st_size
        if size != len(into):
            _damaged(doing, f"{size} bytes long instead of {len(into)}")
        got = 0
        while got < size:
            count = os.preadv(fd, [into[got:]], got)
            if not count:
                _damaged(doing, f"cut off after {got} of {size} bytes")
            got += count

    def _type(self, key: str) -> str:
        try:
            with self._below.opened(f"{_TYPES}/{key}") as fd:
                text = os.pread(fd, _TYPE_BYTES_MAX, 0).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return UNTYPED
        return text if text.isprintable() and "/" in text else UNTYPED


def _digest(fd: int) -> str:
    with open(fd, "rb", closefd=False) as file:
        return blake3(file.read()).hexdigest()


def _damaged(doing: str, found: str) -> NoReturn:
    raise IntegrityError(f"{doing}: it is {found}; run: bdnfs mirror verify --repair")
