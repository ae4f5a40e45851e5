"""The share: chunks that this node keeps for its cluster, a file each, under a cap of their own.

    share/<org>/<namespace>/ab/<64 hex digits>

A chunk's file shows whole or not at all: it is written under another name, then renamed. It is not synced: after
a restart every chunk is suspect, and is hashed before it is given to anybody. Eviction unlinks, so
whoever is being sent one gets all of it. Nothing but the share is ever evicted for the share.
"""

import os
import re
import secrets
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from bdnfs.cache.layout import Layout, empty
from bdnfs.cache.storage import storage_error
from bdnfs.core.errors import BdnfsError

# In the cache's directory.
SHARE = "share"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}")
_READ_BYTES = 1 << 20


class ShareKey(NamedTuple):
    """A chunk of a tenant's. digest: 64 hex digits of its BLAKE3."""

    org: str
    namespace: str
    digest: str

    @property
    def path(self) -> str:
        """Where it lies, relative to the share's directory."""
        return f"{self.org}/{self.namespace}/{self.digest[:2]}/{self.digest}"


class _Kept(NamedTuple):
    """A chunk's file as it was written, or found. checked: its bytes have been hashed since."""

    size: int
    inode: int
    mtime_ns: int
    checked: bool


class Share:
    """One process's share; nobody else writes there. Blocking, of several threads' use.

    room: returns how many more bytes the disk may take (it may be negative)
    """

    def __init__(self, directory: Path, cap_bytes: int, room: Callable[[], int]) -> None:
        self.directory, self.cap_bytes = directory, cap_bytes
        self._room = room
        self._mutex = threading.Lock()
        self._kept: OrderedDict[ShareKey, _Kept] = OrderedDict()  # least recently used first
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def __len__(self) -> int:
        return len(self._kept)

    def scan(self) -> None:
        """Take in what is there, the least recently written first; what no share has is deleted.

        Raises CacheError where the directory can't be used.
        """
        try:
            self.directory.mkdir(exist_ok=True, mode=0o700)
            found = sorted(self._look(), key=lambda item: item[1].mtime_ns)
        except OSError as error:
            raise storage_error(self.directory, "read", error) from error
        with self._mutex:
            self._kept = OrderedDict(found)
            self._used_bytes = sum(kept.size for _, kept in found)
            victims = self._victims(self.cap_bytes)
        self._unlink(victims)

    def _look(self) -> Iterator[tuple[ShareKey, _Kept]]:
        for org in _directories(self.directory):
            for namespace in _directories(org):
                for first in _directories(namespace):
                    for entry in os.scandir(first):
                        found = entry.stat(follow_symlinks=False)
                        if (
                            stat.S_ISREG(found.st_mode)
                            and _DIGEST.fullmatch(entry.name)
                            and entry.name.startswith(first.name)
                        ):
                            key = ShareKey(org.name, namespace.name, entry.name)
                            yield key, _Kept(found.st_size, found.st_ino, found.st_mtime_ns, False)
                        else:  # half a chunk, or somebody else's
                            empty(Path(entry.path))

    def find(self, key: ShareKey) -> int | None:
        """Return the length of a chunk that is here, None if it isn't; it counts as used.

        One that was not hashed since this process began, or was touched since, is hashed first.
        """
        kept = self.looks_sound(key)
        if kept is not None:
            return kept
        with self._mutex:
            known = self._kept.get(key)
        if known is None:
            return None
        try:
            found = os.lstat(self.directory / key.path)
            sound = stat.S_ISREG(found.st_mode) and self._hash(key) == key.digest
        except OSError:
            sound = False
        if not sound:
            self.drop(key)
            return None
        with self._mutex:
            if self._kept.get(key) != known:  # evicted meanwhile
                return None
            self._kept[key] = _Kept(found.st_size, found.st_ino, found.st_mtime_ns, True)
            self._used_bytes += found.st_size - known.size
        return found.st_size

    def looks_sound(self, key: ShareKey) -> int | None:
        """Return the length of a chunk that is here as it was hashed; None if `find` has to look.

        Costs a lookup and a stat of a file that is in use: it may be called where nothing may block.
        """
        with self._mutex:
            kept = self._kept.get(key)
            if kept is None or not kept.checked:
                return None
            self._kept.move_to_end(key)
        try:
            found = os.stat(self.directory / key.path, follow_symlinks=False)
        except OSError:
            return None
        same = (found.st_size, found.st_ino, found.st_mtime_ns) == kept[:3]
        return kept.size if same else None

    def holds(self, key: ShareKey) -> bool:
        """Say whether a chunk is among those kept, hashed or not."""
        return key in self._kept

    def read(self, key: ShareKey, into: memoryview) -> bool:
        """Fill `into`, of the chunk's length; False where it is gone."""
        try:
            fd = os.open(self.directory / key.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            offset = 0
            while offset < len(into):
                count = os.preadv(fd, [into[offset : offset + _READ_BYTES]], offset)
                if count == 0:
                    return False
                offset += count
            return True
        except OSError:
            return False
        finally:
            os.close(fd)

    def keep(self, key: ShareKey, data: memoryview) -> bool:
        """Keep a chunk that was verified; False where it doesn't fit, or can't be written."""
        size = len(data)
        with self._mutex:
            if key in self._kept:
                return True
            if size > self.cap_bytes:
                return False
            # Charged before it is written: several threads keep at once, and the cap is hard.
            victims = self._victims(self.cap_bytes - size)
            self._used_bytes += size
        self._unlink(victims)
        kept = None
        try:
            if self._makes_room(size):
                kept = self._write(key, data)
        except (OSError, BdnfsError):
            pass  # a full disk, most likely, or an index that can't be asked: it is sent on all the same
        finally:
            with self._mutex:
                if kept is None or key in self._kept:
                    self._used_bytes -= size
                if kept is not None:
                    self._kept[key] = kept
        return kept is not None

    def _write(self, key: ShareKey, data: memoryview) -> _Kept:
        path = self.directory / key.path
        draft = path.with_name(f".{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(draft, flags, 0o600)
        except FileNotFoundError:
            for parent in reversed(path.relative_to(self.directory).parents):
                (self.directory / parent).mkdir(exist_ok=True, mode=0o700)
            fd = os.open(draft, flags, 0o600)
        try:
            while data:
                data = data[os.write(fd, data) :]
            os.rename(draft, path)
            found = os.fstat(fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise
        finally:
            os.close(fd)
        return _Kept(found.st_size, found.st_ino, found.st_mtime_ns, True)

    def drop(self, key: ShareKey) -> None:
        """Keep a chunk no longer."""
        with self._mutex:
            kept = self._kept.pop(key, None)
            if kept is not None:
                self._used_bytes -= kept.size
        if kept is not None:
            self._unlink([key])

    def shrink(self) -> None:
        """Give back what the disk lacks for what else was promised on it."""
        with suppress(OSError, BdnfsError):  # at the next time, then
            self._makes_room(0)

    def _makes_room(self, size: int) -> bool:
        """Evict until the disk takes size more bytes; False where the share alone can't bring that about."""
        while (lacks := size - self._room()) > 0:
            with self._mutex:
                victims = self._victims(max(0, self._used_bytes - lacks))
            if not victims:
                return False
            self._unlink(victims)
        return True

    def _victims(self, most_bytes: int) -> list[ShareKey]:
        """Take the least recently used out until no more than most_bytes are used; the mutex is held."""
        victims = []
        while self._used_bytes > most_bytes and self._kept:
            key, kept = self._kept.popitem(last=False)
            self._used_bytes -= kept.size
            victims.append(key)
        return victims

    def _unlink(self, keys: list[ShareKey]) -> None:
        for key in keys:
            with suppress(OSError):
                os.unlink(self.directory / key.path)

    def _hash(self, key: ShareKey) -> str:
        hasher = blake3()
        fd = os.open(self.directory / key.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                hasher.update(piece)
        return hasher.hexdigest()


def drop_share(layout: Layout, org: str) -> int:
    """Delete what the share has of a tenant, whether a node runs here or not; return how many bytes that were."""
    kept = layout.root / SHARE / org
    size = sum(path.lstat().st_size for path in kept.glob("*/*/*"))
    layout.discard(kept)
    return size


def _directories(parent: Path) -> Iterator[Path]:
    for entry in os.scandir(parent):
        if entry.is_dir(follow_symlinks=False) and _NAME.fullmatch(entry.name):
            yield Path(entry.path)
        else:
            with suppress(OSError):
                empty(Path(entry.path))
