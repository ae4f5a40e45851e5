"""The FUSE view of a tree: pyfuse3's requests answered from a Tree and its Contents.

lookup, getattr, open and readdir never wait: a process waiting in them can't be killed. Only reads
do, up to a deadline. This process must never touch the mount it serves.
"""

import errno
import logging
import math
import os
import select
import signal
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import NamedTuple, Protocol

import pyfuse3
import trio

from bdnfs.core.errors import BdnfsError, MountError, errno_of
from bdnfs.core.units import KIB, MIB, TREE_MTIME_S, format_duration
from bdnfs.fs.connection import raise_read_ahead
from bdnfs.fs.mountpoints import health
from bdnfs.fs.mounts import Mount, hold, mount_table, top_mount, unmount
from bdnfs.fs.tree import Node, Tree

log = logging.getLogger(__name__)

SUBTYPE = "bdnfs"
READ_BYTES_MAX = 1 * MIB  # what libfuse asks for: 256 pages
BUFFERS_MAX = 16
POOLED_BYTES_MIN = 64 * KIB  # below, a new buffer costs nothing
SLOW_READ_S = 10.0
FOREVER_S = 10 * 365 * 86400
# Every waiting read holds one of pyfuse3's tasks; running out of them would make lookups wait.
_TASKS_MAX, _TASKS_IDLE = 1 << 20, 4
_WATCH_S = 1.0
_TICK_S = 0.25


class Contents(Protocol):
    """Where the bytes are from."""

    def read_now(self, part: str, file: int, offset: int, into: memoryview) -> bool:
        """Fill into with the file's bytes from offset and return True, if that needs no waiting."""

    async def read(self, part: str, file: int, offset: int, into: memoryview) -> None:
        """Fill into with the file's bytes from offset; raise BdnfsError where that can't be.

        When cancelled it may go on writing to into, but must do nothing else.
        """


async def serve(
    tree: Tree,
    contents: Contents,
    mountpoint: str,
    *,
    read_deadline_s: float,
    allow_other: bool,
    on_mounted: Callable[[], Awaitable[None] | None],
    fsname: str,
) -> None:
    """Mount tree at mountpoint and answer its readers until the kernel needs no answers any more.

    That is when every mount of it is gone and every file of it closed. Cancelled before, it takes its
    mounts away itself. fsname shows in the mount table: no secret may be in it. Only one at a time in
    a process, best on its main thread. Raise MountError where mounting fails.
    """
    operations = _Operations(tree, contents, read_deadline_s)
    fuse_fd = _open_session(operations, mountpoint, allow_other, fsname)
    mount = top_mount(mountpoint)
    ended = trio.Event()
    try:
        if mount is None or mount.fstype != f"fuse.{SUBTYPE}":
            raise MountError(f"mounting at {mountpoint}: the new mount was taken away at once; mount again")
        with _ticking():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, operations, fuse_fd, ended)
                nursery.start_soon(_announce, operations, mount, on_mounted)
                nursery.start_soon(_answer, fuse_fd, ended)
                await ended.wait()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _only(group) from None
    finally:
        pyfuse3.close(unmount=False)  # by path it could take what came after us
        if mount is not None:
            _take_away(mount, dead_only=ended.is_set())


async def _answer(fuse_fd: int, ended: trio.Event) -> None:
    try:
        await pyfuse3.main(_TASKS_IDLE, _TASKS_MAX)
    except* OSError:
        if _connected(fuse_fd):
            raise
    if _connected(fuse_fd):
        raise MountError("serving FUSE: libfuse gave up at once (its own words are on standard error)")
    ended.set()


async def _announce(
    operations: "_Operations", mount: Mount, on_mounted: Callable[[], Awaitable[None] | None]
) -> None:
    # INIT can only lower the read-ahead, so it is raised once INIT is through.
    await operations.initialised.wait()
    raise_read_ahead(mount)
    pending = on_mounted()
    if pending is not None:
        await pending


async def _watch(operations: "_Operations", fuse_fd: int, ended: trio.Event) -> None:
    """Log slow reads; end the session where the kernel has, and reads nobody needs still wait."""
    while True:
        connected = _connected(fuse_fd)
        await trio.sleep(_WATCH_S)  # time enough for pyfuse3 to see how it ended
        if not connected:
            ended.set()
        operations.look_after_reads()


def _open_session(operations: "_Operations", mountpoint: str, allow_other: bool, fsname: str) -> int:
    """Mount, and return the descriptor of the connection to the kernel, which pyfuse3 keeps to itself."""
    name = fsname.encode("ascii", "replace").decode().replace("\\", "\\\\").replace(",", "\\,")
    options = {
        f"fsname={name}", f"subtype={SUBTYPE}", "ro", "nosuid", "nodev", "default_permissions",
    }  # fmt: skip
    if allow_other:
        options.add("allow_other")
    os.close(hold(mountpoint))  # libfuse would mount on a file
    before = _fuse_fds()
    try:
        pyfuse3.init(operations, mountpoint, options)
    except RuntimeError:
        raise MountError(
            f"mounting at {mountpoint}: libfuse could not mount there (its own words are on standard error); "
            "`bdnfs doctor` says whether /dev/fuse and fusermount3 are usable"
        ) from None
    return min(_fuse_fds() - before)


def _fuse_fds() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
        except OSError:
            continue
    return found


def _connected(fuse_fd: int) -> bool:
    poll = select.poll()
    poll.register(fuse_fd, 0)
    return not any(events & (select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))


def _take_away(mount: Mount, *, dead_only: bool) -> None:
    """Unmount every mount of this session in this namespace, so that none is left dead.

    dead_only: the session is over, because they are all gone already (then another daemon's may have
    their numbers by now) or because somebody has cut it off: only what is seen to be dead.
    """
    for each in reversed(mount_table()):
        if each.device == mount.device and each.fstype == mount.fstype:
            if dead_only and health(each) != "dead":
                continue
            try:
                unmount(each.mountpoint, each.mount_id)
            except MountError as error:
                log.warning("leaving a dead mount behind: %s", error)


def _only(error: BaseException) -> BaseException:
    """Return the one error that groups of one hold."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _is_killed(pid: int) -> bool:
    """Whether a process has been sent SIGKILL and still has a thread that can't take it."""
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            pending = next(line for line in status.read_text().splitlines() if line.startswith("SigPnd:"))
        except (OSError, StopIteration):
            continue
        if int(pending.split()[1], 16) & 1 << signal.SIGKILL - 1:
            return True
    return False


@contextmanager
def _ticking() -> Iterator[None]:
    """Have a signal come in every so often while serving.

    pyfuse3 reads /dev/fuse blocking, with the interpreter's lock held: where the one request that
    made it readable is withdrawn first (its process was killed) everything would stand still until
    the next one. A signal ends that read with EINTR.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Handle(NamedTuple):
    """An open file, and the process that opened it (0 where that can't be told)."""

    node: Node
    pid: int


class _Waiting:
    """A read that waits."""

    __slots__ = ("abandoned", "handle", "logged", "offset", "scope", "since_s")

    def __init__(self, handle: _Handle, offset: int, scope: trio.CancelScope) -> None:
        self.handle, self.offset, self.scope = handle, offset, scope
        self.since_s = time.monotonic()
        self.logged = self.abandoned = False


class _Operations(pyfuse3.Operations):
    """pyfuse3's requests; what isn't here it answers with ENOSYS, and the kernel asks no more."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, tree: Tree, contents: Contents, read_deadline_s: float) -> None:
        super().__init__()
        self.initialised = trio.Event()
        self._tree = tree
        self._contents = contents
        self._read_deadline_s = read_deadline_s
        self._owner = os.geteuid(), os.getegid()
        self._buffers: list[bytearray] = []
        self._waiting: set[_Waiting] = set()
        self._handles: dict[int, _Handle] = {}
        self._handle_numbers = count(1)

    def init(self) -> None:
        self.initialised.set()  # its waiters run once the answer is out

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node = self._tree.lookup(parent_inode, name)
        if node is not None:
            return self._attributes(node)
        absent = pyfuse3.EntryAttributes()  # inode 0: the kernel remembers that there is no such name
        absent.st_ino = pyfuse3.InodeT(0)
        absent.entry_timeout = FOREVER_S
        return absent

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(self._node(inode))

    def forget(self, inode_list: object) -> None:  # type: ignore[override]
        """Inodes live as long as the tree."""

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        fh = pyfuse3.FileHandleT(next(self._handle_numbers))
        self._handles[fh] = _Handle(self._node(inode), ctx.pid)
        return pyfuse3.FileInfo(fh=fh, keep_cache=True)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._handles.pop(fh, None)

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        pass

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        attributes = pyfuse3.EntryAttributes()  # one for all: each answer copies it
        dots = ((b".", self._node(fh)), (b"..", self._tree.parent(fh)))
        listed = chain(islice(dots, start_id, None), self._tree.entries(fh, max(0, start_id - 2)))
        for position, (name, node) in enumerate(listed, start_id + 1):
            self._describe(node, attributes)
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attributes, position):
                return

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = -(-self._tree.total_bytes // 4096)
        data.f_bfree = data.f_bavail = 0
        data.f_files = len(self._tree)
        data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        handle = self._handles[fh]
        node = handle.node
        length = min(size, node.size - off)
        if length <= 0:
            return b""
        buffer = self._buffers.pop() if self._buffers and length >= POOLED_BYTES_MIN else None
        if buffer is None:
            buffer = bytearray(max(length, READ_BYTES_MAX) if length >= POOLED_BYTES_MIN else length)
        into = memoryview(buffer)[:length]
        try:
            if not self._contents.read_now(node.part, node.file, off, into):
                await self._read_waiting(handle, off, into)
        except Exception as error:
            # The buffer isn't used again: a cancelled read may still be writing to it.
            raise pyfuse3.FUSEError(self._reported(error, node, off)) from None
        if len(buffer) == READ_BYTES_MAX and len(self._buffers) < BUFFERS_MAX:
            # pyfuse3 replies before any other task runs, so before anyone takes it from here.
            self._buffers.append(buffer)
        return into  # type: ignore[return-value]

    async def _read_waiting(self, handle: _Handle, offset: int, into: memoryview) -> None:
        node = handle.node
        with trio.move_on_after(self._read_deadline_s) as scope:
            waiting = _Waiting(handle, offset, scope)
            self._waiting.add(waiting)
            try:
                await self._contents.read(node.part, node.file, offset, into)
            finally:
                self._waiting.remove(waiting)
        if scope.cancelled_caught:
            raise InterruptedError if waiting.abandoned else trio.TooSlowError
        if waiting.logged:
            log.info("%s: was read after all", self._shown(node, offset))

    def look_after_reads(self) -> None:
        """Log each read that a reader has begun to wait long for; end those of killed processes.

        A direct read, or a fault in a map advised as random, can't be killed until it is answered.
        """
        now = time.monotonic()
        killed: dict[int, bool] = {}
        for waiting in self._waiting:
            waited_s = now - waiting.since_s
            pid = waiting.handle.pid
            if waited_s >= _WATCH_S and pid:
                if pid not in killed:
                    killed[pid] = _is_killed(pid)
                if killed[pid]:
                    waiting.abandoned = True
                    waiting.scope.cancel()
            if waited_s >= SLOW_READ_S and not waiting.logged:
                waiting.logged = True
                log.warning(
                    "%s: a reader has been waiting for %s; it gets an error after %s",
                    self._shown(waiting.handle.node, waiting.offset),
                    format_duration(waited_s),
                    format_duration(self._read_deadline_s),
                )

    def _reported(self, error: Exception, node: Node, offset: int) -> int:
        """Log why a read failed and return the errno its reader gets."""
        cause = _only(error)
        if isinstance(cause, InterruptedError):
            return errno.EINTR
        shown = self._shown(node, offset)
        if isinstance(cause, BdnfsError):
            log.error("%s: %s", shown, cause)
            return errno_of(cause)
        if isinstance(cause, trio.TooSlowError):
            deadline = format_duration(self._read_deadline_s)
            log.error("%s: the bytes did not come within %s; a later read may succeed", shown, deadline)
        else:
            log.error("%s: reading failed", shown, exc_info=cause)
        return errno.EIO

    def _shown(self, node: Node, offset: int) -> str:
        return f"{self._tree.path(node.inode)} at byte {offset}"

    def _node(self, inode: int) -> Node:
        try:
            return self._tree.node(inode)
        except KeyError:
            raise pyfuse3.FUSEError(errno.ESTALE) from None

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        return self._describe(node, pyfuse3.EntryAttributes())

    def _describe(self, node: Node, into: pyfuse3.EntryAttributes) -> pyfuse3.EntryAttributes:
        into.st_ino = pyfuse3.InodeT(node.inode)
        into.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o555 if node.is_directory else stat.S_IFREG | 0o444)
        into.st_nlink = node.links
        into.st_size = node.size
        into.st_blocks = math.ceil(node.size / 512)
        into.st_uid, into.st_gid = self._owner
        into.st_atime_ns = into.st_mtime_ns = into.st_ctime_ns = TREE_MTIME_S * 1_000_000_000
        into.entry_timeout = into.attr_timeout = FOREVER_S
        return into
