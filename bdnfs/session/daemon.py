"""The daemon behind a FUSE mount: fills, answers readers, hands off, and ends with its last file.

Started as `python -m bdnfs.session.daemon DIRECTORY`, with its job as JSON on stdin (secrets are
in it, so never in argv). It never touches its own mount: the command that started it binds the
FUSE session's directories to their locations and says `bound`.
"""

import faulthandler
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import trio

from bdnfs.cache.node import NodeCache, open_node_cache
from bdnfs.core.errors import UNREADABLE, BdnfsError, MountError, UnavailableError
from bdnfs.core.progress import WAITING
from bdnfs.core.steps import reach
from bdnfs.delivery.delivery import Delivery, open_delivery
from bdnfs.delivery.nursery import open_nursery
from bdnfs.delivery.progress import Progress
from bdnfs.delivery.resolve import Admitted
from bdnfs.fs.fuse import serve
from bdnfs.fs.handoff import hand_off
from bdnfs.fs.mounts import detach, hold, mount_id_of, mount_table, top_mount
from bdnfs.fs.tree import Tree
from bdnfs.session.asking import open_origin_of
from bdnfs.session.bugs import bug_line
from bdnfs.session.control import Event, Request
from bdnfs.session.elsewhere import scanner
from bdnfs.session.filling import admit_parts, mirror, peers_of
from bdnfs.session.job import Job
from bdnfs.session.keeper import kept
from bdnfs.session.parts import Part, part_at
from bdnfs.session.records import Mounted, RecordDirectory
from bdnfs.spec.load import Placed

log = logging.getLogger("bdnfs")

_EVENT_S = 0.2
# Upstream away during a lazy mount's fill: readers may still be served, so the fill tries again.
_REFILL_S = 15.0
_WATCH_S = 1.0
_LINE_BYTES_MAX = 4096
_FIRST_WORDS_S, _LAST_WORDS_S = 2.0, 5.0


class Daemon:
    """One mount's daemon."""

    def __init__(self, cache: NodeCache, job: Job, directory: RecordDirectory, nursery: trio.Nursery) -> None:
        self._cache = cache
        self._job = job
        self._directory = directory
        self._nursery = nursery
        self._progress = Progress()
        self._state = "resolving"
        self._error: BdnfsError | None = None
        self._bound = trio.Event()
        self._fuse_fds: dict[str, int] = {}
        self._handed_off: list[str] = []
        self._gone: list[str] = []
        self._mounts: tuple[Mounted, ...] = ()
        self._device = ""
        self._stopping = False
        self._changed = trio.Event()
        self._followers = 0

    async def run(self) -> None:
        """Do the job; return when the mount is over."""
        parts = [
            part_at(self._cache, placed, selection, revision)
            for placed, selection, revision in zip(
                self._job.placed, self._job.selections, self._job.revisions, strict=True
            )
        ]
        config, options = self._job.config, self._job.options
        known, admitted = await admit_parts(
            self._cache, config, parts, options, self._job.secrets, self._progress
        )
        self._mounts = tuple(
            Mounted(
                part.placed.location,
                part.weights.source.text,
                part.revision or "",
                part.snapshot_id or "",
            )
            for part in known
        )
        self._directory.write("fuse", self._mounts)
        # What is whole already goes the same way: its fill ends at once.
        admitted += [whole for part in known if (whole := self._admitted_whole(part, admitted))]
        position = {item.snapshot_id: index for index, item in enumerate(admitted)}
        places = {
            self._name(index, part.placed): position[part.snapshot_id or ""]
            for index, part in enumerate(known)
        }
        tree = Tree({name: admitted[index].record.manifest for name, index in places.items()})
        try:
            async with (
                peers_of(config, admitted, self._progress) as peers,
                open_delivery(
                    self._cache,
                    admitted,
                    config.upstream,
                    self._progress,
                    window=not options.fill,
                    peers=peers,
                ) as delivery,
            ):
                await self._serve(delivery, admitted, tree, places)
        finally:
            for item in admitted:
                item.close()

    def _admitted_whole(self, part: Part, admitted: list[Admitted]) -> Admitted | None:
        if part.tree is None or part.snapshot_id is None or part.pin is None:
            return None
        if any(item.snapshot_id == part.snapshot_id for item in admitted):
            return None
        record = self._cache.record(part.snapshot_id)
        if record is None:
            raise MountError(f"{part.weights.source.text}: its record is gone from the cache; mount again")
        origin = open_origin_of(part.weights, self._job.config, self._job.secrets)
        return Admitted(part.snapshot_id, record, part.pin, origin)

    def _name(self, index: int, placed: Placed) -> str:
        """The source's directory in the FUSE session."""
        if self._job.direct is None:
            return str(index)
        return (
            os.path.relpath(placed.location, self._job.direct) if placed.location != self._job.direct else ""
        )

    async def _serve(
        self, delivery: Delivery, admitted: list[Admitted], tree: Tree, contents: dict[str, int]
    ) -> None:
        view = _View(delivery, contents)
        mountpoint = self._job.direct or str(self._directory.fuse)
        async with open_nursery() as nursery:

            async def mounted() -> None:
                mount = top_mount(mountpoint)
                self._device = mount.device if mount else ""
                self._enter("ready")
                nursery.start_soon(self._work, delivery, admitted)
                nursery.start_soon(self._watch_locations)

            await serve(
                tree,
                view,
                mountpoint,
                read_deadline_s=self._job.config.read_deadline_s,
                allow_other=os.geteuid() == 0,
                on_mounted=mounted,
                fsname=self._mounts[0].source if len(self._mounts) == 1 else f"{len(self._mounts)} sources",
            )
            nursery.cancel_scope.cancel()

    async def _work(self, delivery: Delivery, admitted: list[Admitted]) -> None:
        """Fill and hand off while FUSE serves."""
        reach("mount:daemon-ready")
        if self._job.direct is not None:
            self._bound.set()
        if not self._job.options.fill:
            self._enter("window")
            return
        self._enter("fetching")
        items = {item.snapshot_id: item for item in admitted}
        for snapshot in delivery.in_turn():
            while True:
                try:
                    tree = await delivery.fill(snapshot)
                    break
                except UnavailableError as error:
                    if not self._job.options.lazy:
                        self._fail(error)
                        return
                    log.warning("the fill goes on in %.0f s: %s", _REFILL_S, error)
                    await trio.sleep(_REFILL_S)
                except BdnfsError as error:
                    self._fail(error)
                    return
            if self._job.direct is None:
                await self._bound.wait()
                await self._hand_off(snapshot.id, tree)
            await mirror(self._cache, items[snapshot.id], self._progress)
        if self._is_over():
            return
        if self._job.direct is None and not self._fuse_fds:
            left = tuple(mount for mount in self._mounts if mount.location not in self._gone)
            self._directory.write("native", left)
            await self._leave_session()
        self._enter("whole")

    async def _watch_locations(self) -> None:
        """Let go of what somebody else unmounted; with the last location the mount is over."""
        await self._bound.wait()
        while not self._is_over():
            await trio.sleep(_WATCH_S)
            standing = {mount.mount_id for mount in mount_table()}
            for location, fd in list(self._fuse_fds.items()):
                if mount_id_of(fd) not in standing:
                    os.close(self._fuse_fds.pop(location))
                    self._gone.append(location)
        gone = ", ".join(self._gone)
        self._fail(MountError(f"{gone}: was unmounted by somebody else meanwhile; mount again"))
        await self._leave_session()

    def _is_over(self) -> bool:
        """Say whether somebody else has unmounted every location."""
        return len(self._gone) == len(self._mounts)

    def _fail(self, error: BdnfsError) -> None:
        log.error("%s", error)
        self._error = error
        self._enter("failed")

    async def _hand_off(self, snapshot_id: str, tree: Path) -> None:
        for mount in self._mounts:
            if mount.snapshot_id == snapshot_id:
                fd = self._fuse_fds.pop(mount.location, None)
                if fd is None:
                    continue  # unmounted by somebody else
                try:
                    await trio.to_thread.run_sync(self._hand_off_one, mount, fd, str(tree))
                except MountError as error:
                    log.warning("%s stays on FUSE: %s", mount.location, error)
                    self._fuse_fds[mount.location] = fd
                    continue
                os.close(fd)
                reach("handoff:detached")
                self._handed_off.append(mount.location)
                log.info("%s is native now", mount.location)

    def _hand_off_one(self, mount: Mounted, fuse_fd: int, tree: str) -> None:
        with kept(self._cache.layout, [mount.snapshot_id]):
            hand_off(mount.location, fuse_fd, tree)

    async def _leave_session(self) -> None:
        """Take the session's own mountpoint away: what is open stays served, nothing new comes in."""

        def leave() -> None:
            fd = hold(str(self._directory.fuse))
            try:
                detach(fd)
            finally:
                os.close(fd)

        await trio.to_thread.run_sync(leave)

    # -- the control socket -------------------------------------------------------------------------

    async def control(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer commands until cancelled."""
        listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        directory = os.open(self._directory.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        await listener.bind(f"/proc/self/fd/{directory}/{self._directory.socket.name}")
        os.close(directory)
        listener.listen(64)
        self._nursery.start_soon(self._expect_bound)
        task_status.started()
        await trio.serve_listeners(self._answer, [trio.SocketListener(listener)])

    async def _expect_bound(self) -> None:
        """End where the command that started this died before it had bound everything."""
        while not self._bound.is_set():
            if os.getppid() != self._job.starter:
                if self._is_bound():  # it died before it could say so
                    await trio.to_thread.run_sync(self._hold_locations)
                    self._bound.set()
                else:
                    log.error("the command that started this is gone, and nobody bound the mount: ending")
                    self.stop()
                return
            await trio.sleep(_EVENT_S)

    def _is_bound(self) -> bool:
        """Say whether every location shows this session."""
        tops = [top_mount(mount.location) for mount in self._mounts]
        return bool(tops) and all(top is not None and top.device == self._device for top in tops)

    async def _answer(self, stream: trio.SocketStream) -> None:
        try:
            async for request in _requests(stream):
                if request.op == "follow":
                    await self._follow(stream)
                    return
                if request.op == "stop":
                    self.stop()
                elif request.op == "bound":
                    await trio.to_thread.run_sync(self._hold_locations)
                    self._bound.set()
                await self._send(stream, self.event())
        except (trio.BrokenResourceError, trio.ClosedResourceError, BdnfsError) as error:
            log.debug("a command went away: %s", error)
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    def _hold_locations(self) -> None:
        for mount in self._mounts:
            if mount.location not in self._fuse_fds:
                self._fuse_fds[mount.location] = hold(mount.location)
        reach("mount:bound")

    async def _follow(self, stream: trio.SocketStream) -> None:
        self._followers += 1
        try:
            while True:
                changed, event = self._changed, self.event()
                await self._send(stream, event)
                if event.state in ("whole", "failed", "window"):  # what was said, not what is by now
                    return
                with trio.move_on_after(_EVENT_S):
                    await changed.wait()
        finally:
            self._followers -= 1

    def _enter(self, state: str) -> None:
        self._state = state
        self._changed.set()
        self._changed = trio.Event()

    async def last_words(self) -> None:
        """Let everyone who follows hear how it ended."""
        with trio.move_on_after(_LAST_WORDS_S):
            while self._followers:
                await trio.sleep(0.01)

    async def _send(self, stream: trio.SocketStream, event: Event) -> None:
        await stream.send_all(msgspec.json.encode(event) + b"\n")

    def event(self) -> Event:
        progress = self._progress
        return Event(
            state="stopping" if self._stopping else self._shown_state,
            pid=os.getpid(),
            total_bytes=progress.total_bytes,
            present_bytes=progress.present_bytes,
            files=progress.files,
            files_whole=progress.files_whole,
            tier_bytes=dict(progress.tier_bytes),
            warnings=tuple(progress.warnings),
            error=str(self._error) if self._error else None,
            error_kind=type(self._error).__name__ if self._error else None,
            handed_off=tuple(self._handed_off),
            device=self._device,
            stands=self._job.options.lazy and self._bound.is_set() and not self._is_over(),
        )

    @property
    def _shown_state(self) -> str:
        """Its state; while somebody else mirrors the source, whom the fill waits for."""
        waits = self._state == "fetching" and self._progress.state.startswith(WAITING)
        return self._progress.state if waits else self._state

    def stop(self) -> None:
        """End the mount: everything is cancelled, `close` takes the mounts away."""
        self._stopping = True
        self._nursery.cancel_scope.cancel()

    def fail(self, error: BdnfsError) -> None:
        self._fail(error)

    def close(self) -> None:
        """Take away what is still ours at the locations; the next command removes the directories."""
        for location, fd in self._fuse_fds.items():
            try:
                detach(fd)
            except MountError as error:
                log.warning("%s: %s", location, error)
            finally:
                os.close(fd)


class _View:
    """What FUSE reads from: a delivery, its snapshots found by their directory."""

    def __init__(self, delivery: Delivery, positions: dict[str, int]) -> None:
        self._delivery = delivery
        self._positions = positions

    def read_now(self, part: str, file: int, offset: int, into: memoryview) -> bool:
        return self._delivery.read_now(self._positions[part], file, offset, into)

    async def read(self, part: str, file: int, offset: int, into: memoryview) -> None:
        await self._delivery.read(self._positions[part], file, offset, into)


async def _requests(stream: trio.SocketStream) -> AsyncIterator[Request]:
    buffer = b""
    while True:
        data = await stream.receive_some(_LINE_BYTES_MAX)
        if not data or len(buffer) > _LINE_BYTES_MAX:
            return
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            try:
                yield msgspec.json.decode(line, type=Request)
            except UNREADABLE:
                return


async def _run(job: Job, directory: RecordDirectory, announce: Callable[[], None]) -> int:
    with open_node_cache(job.config.cache, scanner(job.config.cache)) as cache:
        async with open_nursery() as nursery:
            daemon = Daemon(cache, job, directory, nursery)
            nursery.start_soon(_on_signal, daemon)
            await nursery.start(daemon.control)
            announce()
            try:
                await _until_over(daemon)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(daemon.close)
            nursery.cancel_scope.cancel()
    return 0


async def _until_over(daemon: Daemon) -> None:
    try:
        await daemon.run()
    except BdnfsError as error:
        daemon.fail(error)
        # A command that has just started it may not follow yet.
        await trio.sleep(_FIRST_WORDS_S)
    await daemon.last_words()


async def _on_signal(daemon: Daemon) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            daemon.stop()


def main(argv: list[str]) -> int:
    """Run the daemon of the record directory argv[1]; the job comes on stdin."""
    faulthandler.enable()  # a crash in C code leaves its trace in the log
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    directory = RecordDirectory(Path(argv[1]))
    held = directory.hold()
    if held is None:
        print("another daemon serves this directory", file=sys.stderr)
        return 1

    def announce() -> None:
        print("listening", flush=True)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)

    try:
        return trio.run(_run, job, directory, announce)
    except BdnfsError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception as error:
        log.exception("ending on a bug")
        log.error("%s", bug_line(error))
        return 1
    finally:
        log.info("ending")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
