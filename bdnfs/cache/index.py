"""The index: LMDB without its own locks, under one OFD lock (docs/concurrency.md).

LMDB's lock file breaks between two processes that are both pid 1 of their containers, so every
transaction runs under `index.lock`: shared to read, exclusive to write, tried until a deadline.
The data file is allocated ahead of its use: a commit that deletes must succeed on a full disk.

LMDB ends the process (SIGBUS, abort) on some damage. So the file's size is looked at before each
transaction, and a byte of `index.lock` says that one is under way: whoever opens the index and
finds it set has it read through by a child first. Behind it stand the index's name and its last
transaction: an older copy that somebody put back vouches for blobs that have changed since.
"""

import os
import secrets
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb

from bdnfs.cache.layout import disk_free_bytes
from bdnfs.cache.locks import lock_until, open_lock_file, unlock, who_holds
from bdnfs.core.errors import CacheError, SpaceError
from bdnfs.core.steps import reach
from bdnfs.core.units import GIB, MIB

# Address space, not disk: a million chunks take about 100 MiB. Fixed, because growing the map
# raises MapResizedError in every other process.
MAP_BYTES = 16 * GIB
BROKEN_MARK = "index.broken"  # found by the next to open: it rebuilds
HEADROOM_BYTES = 8 * MIB  # pages a deleting commit may copy; kept allocated at all times
ALLOCATE_BYTES = 32 * MIB
LOCK_TIMEOUT_S = 60.0
TABLES = ("meta", "snapshots", "blobs", "chunks", "aliases", "selections")

_META_BYTES = 8192  # LMDB's two first pages, 4 KiB each at least
_BROKEN = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    # What comes after damage that LMDB met and did not tell of, in the same transaction.
    lmdb.BadTxnError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
)
# A gigabyte of rows, from a slow disk.
READING_TIMEOUT_S = 300.0
_IDLE, _BUSY = b"\0", b"\1"
_NAME = b"name"  # in `meta`
_STAMP = struct.Struct("<16sQ")  # in `index.lock`: the index's name, its last transaction
_STAMP_AT = 8
_NAMELESS = bytes(16)


class BrokenIndexError(CacheError):
    """The index can't be read; it has to be rebuilt from the blobs."""


class Transaction:
    """Rows by table, within one lock and one LMDB transaction."""

    def __init__(self, txn: lmdb.Transaction, tables: dict[str, "lmdb._Database"]) -> None:
        self._txn = txn
        self._tables = tables
        self._after: list[Callable[[], None]] = []
        self._undo: list[Callable[[], None]] = []

    def get(self, table: str, key: bytes) -> bytes | None:
        value = self._txn.get(key, db=self._tables[table])
        return None if value is None else bytes(value)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._txn.put(key, value, db=self._tables[table])

    def delete(self, table: str, key: bytes) -> bool:
        return bool(self._txn.delete(key, db=self._tables[table]))

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows whose key begins with prefix, in key order; don't write meanwhile."""
        with self._txn.cursor(db=self._tables[table]) as cursor:
            found = cursor.set_range(prefix) if prefix else cursor.first()
            while found:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    return
                yield key, bytes(cursor.value())
                found = cursor.next()

    def after_commit(self, act: Callable[[], None]) -> None:
        """Run act once this is committed, the lock still held. What it can't do must do no harm."""
        self._after.append(act)

    def on_abort(self, act: Callable[[], None]) -> None:
        """Run act, the latest first, if this is rolled back; the lock is still held."""
        self._undo.append(act)

    def committed(self) -> None:
        for act in self._after:
            with suppress(OSError, CacheError, SpaceError):
                act()

    def aborted(self) -> None:
        for act in reversed(self._undo):
            with suppress(OSError, CacheError, SpaceError):
                act()


class Index:
    """One open index, shared by everyone in the process (LMDB allows no second). Thread-safe.

    Get it with `bdnfs.cache.opening`; one transaction at a time in a process.
    """

    def __init__(self, directory: Path, lock_timeout_s: float) -> None:
        self.path = directory / "index.lmdb"
        self._lock_path = directory / "index.lock"
        self._broken_path = directory / BROKEN_MARK
        self._lock_timeout_s = lock_timeout_s
        self._mutex = threading.Lock()
        self._env: lmdb.Environment | None = None
        self._tables: dict[str, lmdb._Database] = {}
        self._inode: tuple[int, int] | None = None
        self._name = _NAMELESS
        self._seen_bytes = _META_BYTES  # the file was this long: any shorter and it is damaged
        self.users = 0
        self._lock_fd = open_lock_file(self._lock_path)
        try:
            self._lock(exclusive=True)
            self._open_whole()
            self._mark(_IDLE)
            unlock(self._lock_fd)
        except BaseException:
            self._close_env()
            os.close(self._lock_fd)
            raise

    def close(self) -> None:
        with self._mutex:
            self._close_env()
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1

    # -- transactions -----------------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view; raise CacheError when the lock isn't had in time."""
        with self._locked(exclusive=False) as env, self._txn(env, write=False) as txn:
            yield txn

    @contextmanager
    def write(self, *, deletes: bool = False) -> Iterator[Transaction]:
        """Commit on leaving, roll back on an error.

        deletes: this frees space, so it may use the headroom. Raises SpaceError where the disk
        has no room for the index to grow, CacheError when the lock isn't had in time.
        """
        with self._locked(exclusive=True) as env:
            self._grow(env, deletes)
            found = None
            try:
                with self._txn(env, write=True) as found:
                    yield found
                    reach("index:committing")
            except BaseException:
                if found is not None:
                    found.aborted()
                raise
            self._stamp(env)
            reach("index:committed")
            found.committed()

    @contextmanager
    def _txn(self, env: lmdb.Environment, *, write: bool) -> Iterator[Transaction]:
        try:
            with env.begin(write=write) as txn:
                yield Transaction(txn, self._tables)
        except lmdb.MapFullError as error:
            raise SpaceError(f"{self.path}: the index has reached its {MAP_BYTES >> 30} GiB") from error
        except (*_BROKEN, BrokenIndexError) as error:
            self._mark_broken()
            raise self._broken(error) from error
        except lmdb.Error as error:
            # A failed commit may leave the environment unusable, the file as it was before.
            self._close_env()
            if disk_free_bytes(self.path.parent) < MIB:  # LMDB reports a short write as an I/O error
                raise SpaceError(
                    f"{self.path}: the index can't be written, the disk is full; free some, then try again"
                ) from error
            raise CacheError(
                f"{self.path}: the cache's index can't be written or read ({error}); check the disk, then try again"
            ) from error

    @contextmanager
    def _locked(self, *, exclusive: bool) -> Iterator[lmdb.Environment]:
        if not self._mutex.acquire(timeout=self._lock_timeout_s):
            raise CacheError(
                f"{self._lock_path}: this process has held it for {self._lock_timeout_s:g} s; is its disk hanging?"
            )
        try:
            if self._lock_fd < 0:
                raise CacheError(f"{self.path}: the cache has been closed")
            self._lock(exclusive=exclusive)
            try:
                if not self._is_current():
                    # Gone, or rebuilt by another process: what is at the path now is the index.
                    unlock(self._lock_fd)
                    self._lock(exclusive=True)
                    if not self._is_current():
                        self._close_env()
                        self._mark(_BUSY)
                        self._open()
                self._mark(_BUSY)
                assert self._env is not None
                yield self._env
            finally:
                self._mark(_IDLE)
                unlock(self._lock_fd)
        finally:
            self._mutex.release()

    def _lock(self, *, exclusive: bool) -> None:
        deadline_s = time.monotonic() + self._lock_timeout_s
        if not lock_until(self._lock_fd, exclusive=exclusive, deadline_s=deadline_s):
            who = who_holds(self._lock_path)
            raise CacheError(
                f"{self._lock_path}: not to be had for {self._lock_timeout_s:g} s; one of these holds it: "
                f"{who}. Is it stopped? Continue or end it, then try again"
            )

    def _mark(self, state: bytes) -> None:
        with suppress(OSError):
            os.pwrite(self._lock_fd, state, 0)

    # -- the file ---------------------------------------------------------------------------------

    def _is_current(self) -> bool:
        """Say whether the open file is the one at the path; raise BrokenIndexError where it was cut off."""
        try:
            status = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if self._env is None or (status.st_dev, status.st_ino) != self._inode:
            return False
        if status.st_size >= self._seen_bytes:  # else not even a look is safe
            self._seen_bytes = _used_bytes(self._env)
        if status.st_size < self._seen_bytes:
            self._mark_broken()
            self._close_env()
            raise self._broken(f"cut off at {status.st_size} of {self._seen_bytes} bytes")
        self._check_age(self._env)
        return True

    def _check_age(self, env: lmdb.Environment) -> None:
        """Raise BrokenIndexError where this is an older copy of the index, or one from before a rebuild."""
        stamp = os.pread(self._lock_fd, _STAMP.size, _STAMP_AT)
        if len(stamp) < _STAMP.size:
            return
        name, last = _STAMP.unpack(stamp)
        if name != _NAMELESS and (name != self._name or last > _last_transaction(env)):
            self._mark_broken()
            raise self._broken("an older copy was put in its place")

    def _stamp(self, env: lmdb.Environment) -> None:
        # Not synced: after a power cut it may be older than the index, never younger.
        with suppress(OSError):
            os.pwrite(self._lock_fd, _STAMP.pack(self._name, _last_transaction(env)), _STAMP_AT)

    def _open_whole(self) -> None:
        """Open the index; one that is broken is moved aside, and an empty one opened in its place."""
        # Set by a process that died in a transaction: by kill -9, or because LMDB ended it.
        died = os.pread(self._lock_fd, 1, 0) == _BUSY
        self._mark(_BUSY)
        if self._broken_path.exists() or (died and self.path.exists() and not self._survives_reading()):
            self._set_aside()
        try:
            self._open()
        except BrokenIndexError:
            self._set_aside()
            self._open()

    def _open(self) -> None:
        with suppress(FileNotFoundError):
            status = os.stat(self.path, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise CacheError(
                    f"{self.path}: is a link, which is not followed, or no plain file; move it away, then try again"
                )
        try:
            self._check_size()
            env = lmdb.open(
                str(self.path),
                map_size=MAP_BYTES,
                subdir=False,
                lock=False,
                writemap=False,
                readahead=False,
                max_dbs=len(TABLES),
                mode=0o600,
            )
        except _BROKEN as error:
            raise self._broken(error) from error
        except lmdb.Error as error:
            raise CacheError(
                f"{self.path}: the cache's index can't be opened ({error}); check the disk, then try again"
            ) from error
        try:
            status = os.stat(self.path)
            if status.st_size < _used_bytes(env):
                raise self._broken(f"cut off at {status.st_size} of {_used_bytes(env)} bytes")
            with env.begin() as txn:
                fresh = txn.stat()["entries"] < len(TABLES)
            if fresh:
                self._allocate(0)
            # A handle opened in a read transaction ends with it; an empty write commits nothing.
            with env.begin(write=True) as txn:
                self._tables = {name: env.open_db(name.encode(), txn=txn, create=fresh) for name in TABLES}
                if fresh:
                    txn.put(_NAME, secrets.token_bytes(16), db=self._tables["meta"])
                self._name = bytes(txn.get(_NAME, db=self._tables["meta"]) or _NAMELESS)
            if fresh:
                self._stamp(env)
                os.fsync(self._lock_fd)
            self._check_age(env)
        except BrokenIndexError:
            env.close()
            raise
        except (*_BROKEN, lmdb.NotFoundError, lmdb.ReadonlyError) as error:
            env.close()
            raise self._broken(error) from error
        except lmdb.Error as error:
            env.close()
            raise CacheError(f"{self.path}: the cache's index can't be opened ({error})") from error
        except OSError as error:
            env.close()
            raise SpaceError(
                f"{self.path}: no room for the index ({error.strerror}); free {ALLOCATE_BYTES >> 20} MiB of disk"
            ) from error
        except BaseException:
            env.close()
            raise
        self._env = env
        self._inode = (status.st_dev, status.st_ino)
        self._seen_bytes = _used_bytes(env)

    def _check_size(self) -> None:
        """Raise BrokenIndexError for a file too short to be looked at; a missing or empty one is new."""
        with suppress(FileNotFoundError):
            size = self.path.stat().st_size
            if 0 < size < _META_BYTES:
                raise self._broken(f"cut off at {size} bytes")

    def _survives_reading(self) -> bool:
        """Have a child read the whole index: what kills it would have killed this process."""
        import subprocess
        import sys

        code = f"from {__name__} import read_all; read_all({str(self.path)!r})"
        command = [sys.executable, "-c", code]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=READING_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise CacheError(
                f"{self.path}: reading it through took longer than {READING_TIMEOUT_S:g} s; check the disk, try again"
            ) from None
        return done.returncode == 0

    def _set_aside(self) -> None:
        with suppress(FileNotFoundError):
            os.replace(self.path, self.path.with_name("index.lmdb.broken"))
        with suppress(OSError):
            os.pwrite(self._lock_fd, _STAMP.pack(_NAMELESS, 0), _STAMP_AT)
        reach("index:set-aside")
        self._broken_path.unlink(missing_ok=True)

    def _close_env(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _mark_broken(self) -> None:
        with suppress(OSError):
            os.close(
                os.open(self._broken_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            )

    def _broken(self, reason: object) -> BrokenIndexError:
        return BrokenIndexError(
            f"{self.path}: the cache's index is broken ({reason}); the next command rebuilds it from the blobs"
        )

    # -- room -------------------------------------------------------------------------------------

    def _grow(self, env: lmdb.Environment, deletes: bool) -> None:
        used_bytes = _used_bytes(env)
        try:
            self._allocate(used_bytes)
        except OSError as error:
            spare_bytes = self.path.stat().st_blocks * 512 - used_bytes
            if not deletes and spare_bytes < HEADROOM_BYTES:
                raise SpaceError(
                    f"{self.path}: no room for the index to grow ({error.strerror}); "
                    "free some disk or run `bdnfs cache evict`"
                ) from error

    def _allocate(self, used_bytes: int) -> None:
        """Keep the file allocated ahead of its use; raise OSError where the disk is full."""
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(fd).st_blocks * 512 < used_bytes + HEADROOM_BYTES:
                os.posix_fallocate(fd, 0, used_bytes + ALLOCATE_BYTES)
        finally:
            os.close(fd)


def _used_bytes(env: lmdb.Environment) -> int:
    return (int(env.info()["last_pgno"]) + 1) * int(env.stat()["psize"])


def _last_transaction(env: lmdb.Environment) -> int:
    return int(env.info()["last_txnid"])


def read_all(path: str) -> None:
    """Read every row and every free page; raise lmdb.Error, or die, where one is damaged."""
    with lmdb.open(
        path,
        map_size=MAP_BYTES,
        subdir=False,
        lock=False,
        readonly=True,
        readahead=False,
        max_dbs=len(TABLES),
    ) as env:
        if os.stat(path).st_size < _used_bytes(env):
            raise lmdb.CorruptedError("cut off")
        with env.begin() as txn:
            for name in TABLES:
                with txn.cursor(db=env.open_db(name.encode(), txn=txn, create=False)) as cursor:
                    for _ in cursor:
                        pass
        # Copying reads what is left: the list of free pages.
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            env.copyfd(null, compact=True)
        finally:
            os.close(null)
