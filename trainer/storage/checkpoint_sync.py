"""Checkpoints on their way to object storage, while the job runs and at its end.

One thread looks through the directory and decides; a few upload. They are daemons: a store that hangs keeps
nobody from ending. What is decided is decided under one lock, and nothing waits inside it.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trainer.storage.checkpoint_files import Version, files_below, has_leases, is_being_written, version_of
from trainer.storage.checkpoint_records import (
    FileRecord,
    State,
    SyncRecord,
    encoded,
    files_prefix,
    read_local,
    read_records,
    record_key,
    write_local,
)
from trainer.storage.checkpoint_store import ChangedFileError, CheckpointStore
from trainer.storage.errors import StoreAwayError, StoreError

# What the store says will not pass is tried this often at the job's end: credentials may just be changing.
_LASTING_FAILURES_MAX = 4
_SHOWN_MAX = 5
# Work that can fail beside the files', by names that no file has.
_LOOKING, _RECORD, _STORE_RECORD = "//directory", "//record", "//record in the store"
# For a thread that the store keeps waiting; it is a daemon.
_CLOSE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """quiet_s: how long a file must have been unchanged, and nobody have it open for writing, to be finished.
    every_s: how often the directory is looked through. uploads: files at once.
    pause_s, pause_max_s: after the first failure, and at most; doubling in between.
    end_timeout_s: how long finish() waits by default.
    """

    quiet_s: float = 2.0
    every_s: float = 2.0
    uploads: int = 4
    pause_s: float = 0.5
    pause_max_s: float = 30.0
    end_timeout_s: float = 3600.0


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What finish() found. missing: (path below the directory, why) of each file that is not up.

    state: "COMPLETED", or "SYNCING" where something is missing; then the files stay in the directory and a
    CheckpointSync of the same job goes on where this one ended. said: one line for the job's log.
    """

    state: State
    files: int
    size_bytes: int
    uploaded_bytes: int
    missing: tuple[tuple[str, str], ...]
    said: str


@dataclass
class _File:
    """A file that is not up in this version. since_s, next_s: of time.monotonic()."""

    version: Version
    since_s: float
    next_s: float = 0.0
    failures: int = 0
    lasting: int = 0
    why: str = ""


@dataclass
class _Shared:
    """What the threads share, under `changed`'s lock.

    up: what the store has, by path; todo: what it has not; nameless: what can have no key
    uploading: paths on their way. One version of a path at a time: the older one must not arrive last.
    failing: paths, and other work, whose last try failed
    """

    up: dict[str, FileRecord] = field(default_factory=dict)
    todo: dict[str, _File] = field(default_factory=dict)
    nameless: set[str] = field(default_factory=set)
    uploading: set[str] = field(default_factory=set)
    uploaded_bytes: int = 0
    dirty: bool = True
    ended: bool = False
    closed: bool = False
    looked_after_end: bool = False
    published: bool = False
    failing: set[str] = field(default_factory=set)
    record_why: str = ""
    record_failures: int = 0
    record_lasting: int = 0


class CheckpointSync:
    """One job's upload under way: threads of its own, alive inside `with open_checkpoint_sync(...)`."""

    def __init__(
        self,
        directory: Path,
        store: CheckpointStore,
        job_id: str,
        record: Path,
        rank: int,
        config: SyncConfig,
        say: Callable[[str], None],
    ) -> None:
        self._directory, self._store, self._job_id = directory, store, job_id
        self._local, self._rank, self._config, self._say = record, rank, config, say
        self._prefix = files_prefix(job_id, rank)
        self._changed = threading.Condition()
        self._shared = _Shared()
        self._queue: queue.SimpleQueue[tuple[str, _File] | None] = queue.SimpleQueue()
        self._next_publish_s = self._next_look_s = 0.0
        known = read_local(record)
        self._asks_store = known is None
        if known is not None:
            self._shared.up = {path: each for path, each in known.files.items() if each.digest}
        self._threads = [threading.Thread(target=self._follow, name="checkpoints", daemon=True)]
        self._threads += [
            threading.Thread(target=self._upload_all, name=f"checkpoint-upload-{number}", daemon=True)
            for number in range(config.uploads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        with self._changed:
            self._shared.closed = True
            self._changed.notify_all()
        for _ in self._threads[1:]:
            self._queue.put(None)
        deadline_s = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def finish(self, timeout_s: float | None = None) -> SyncReport:
        """After the job's last process: every file there is is finished. Upload what is missing; wait for it.

        Tries again, with growing pauses, whatever may pass, until timeout_s (default the config's).
        Never raises for what the store does.
        """
        deadline_s = time.monotonic() + (self._config.end_timeout_s if timeout_s is None else timeout_s)
        with self._changed:
            self._shared.ended = self._shared.dirty = True
            self._next_publish_s = self._next_look_s = 0.0
            for each in self._shared.todo.values():
                each.next_s, each.lasting = 0.0, 0
            self._changed.notify_all()
            while not self._is_done() and (left_s := deadline_s - time.monotonic()) > 0:
                self._changed.wait(min(left_s, 1.0))
            return self._report()

    # ---- deciding: under the lock ---------------------------------------------------------------

    def _is_done(self) -> bool:
        shared = self._shared
        hopeless = shared.record_lasting >= _LASTING_FAILURES_MAX
        return (
            shared.looked_after_end
            and all(each.lasting >= _LASTING_FAILURES_MAX for each in shared.todo.values())
            and ((shared.published and not shared.dirty) or hopeless)
        )

    def _report(self) -> SyncReport:
        shared = self._shared
        missing = [(path, each.why or "there was no time") for path, each in sorted(shared.todo.items())]
        missing += [(path, "its name is no UTF-8; rename it") for path in sorted(shared.nameless)]
        if not shared.looked_after_end:
            missing.append(("", "the directory could not be looked through in time"))
        elif not missing and (shared.dirty or not shared.published):
            missing.append((record_key(self._job_id, self._rank), shared.record_why or "there was no time"))
        files, size_bytes = len(shared.up), sum(each.size for each in shared.up.values())
        if missing:
            shown = "; ".join(f"{path} ({why})" if path else why for path, why in missing[:_SHOWN_MAX])
            more = f"; and {len(missing) - _SHOWN_MAX} more" if len(missing) > _SHOWN_MAX else ""
            said = (
                f"checkpoints: {len(missing)} file(s) are NOT at {self._store.name}: {shown}{more}. They stay in "
                f"{self._directory}; {files} others are up"
            )
        else:
            said = f"checkpoints: all {files} file(s), {size_bytes:,} bytes, are at {self._store.name}"
        return SyncReport(
            state="SYNCING" if missing else "COMPLETED",
            files=files,
            size_bytes=size_bytes,
            uploaded_bytes=shared.uploaded_bytes,
            missing=tuple(missing),
            said=said,
        )

    def _note(self, found: dict[str, Version], now_s: float, *, after_end: bool) -> None:
        """Take over what a look through the directory found."""
        shared = self._shared
        shared.nameless = {_printable(path) for path in found if _printable(path) != path}
        for path, version in found.items():
            if _printable(path) in shared.nameless:
                continue
            up = shared.up.get(path)
            if up is not None and (up.size, up.mtime_ns) == (version.size, version.mtime_ns):
                shared.dirty |= shared.todo.pop(path, None) is not None
                continue
            known = shared.todo.get(path)
            if known is None or known.version != version:
                # What the store has under this name is about to be replaced: nobody should count on it.
                shared.up.pop(path, None)
                shared.todo[path] = _File(version, now_s)
                shared.dirty = True
        for path in [path for path in shared.todo if path not in found]:
            del shared.todo[path]  # deleted, or renamed
            shared.failing.discard(path)
            shared.dirty = True
        shared.looked_after_end |= after_end
        self._changed.notify_all()

    def _due(self, now_s: float) -> list[tuple[str, _File]]:
        shared, quiet_s = self._shared, self._config.quiet_s
        due = [
            (path, each)
            for path, each in shared.todo.items()
            if path not in shared.uploading
            and each.next_s <= now_s
            and (shared.ended or now_s - each.since_s >= quiet_s)
            and not (shared.ended and each.lasting >= _LASTING_FAILURES_MAX)
        ]
        return sorted(due, key=lambda each: each[1].version.mtime_ns)

    def _record(self) -> SyncRecord:
        shared = self._shared
        todo = {
            path: FileRecord(each.version.size, each.version.mtime_ns) for path, each in shared.todo.items()
        }
        files = shared.up | todo
        return SyncRecord(
            job_id=self._job_id, rank=self._rank, updated_s=time.time(), ended=shared.ended, files=files
        )

    def _pause_s(self, failures: int) -> float:
        bound_s: float = min(self._config.pause_max_s, self._config.pause_s * 2.0 ** min(failures - 1, 20))
        return bound_s * random.uniform(0.5, 1.0)

    # ---- the thread that follows the directory --------------------------------------------------

    def _follow(self) -> None:
        self._ask_store()
        leases = has_leases(self._directory)
        while True:
            with self._changed:
                if self._shared.closed:
                    return
                ended = self._shared.ended
                if time.monotonic() < self._next_look_s:
                    # At the end whoever uploads says when there is something to do.
                    every_s = self._config.every_s
                    self._changed.wait(min(0.05, every_s) if ended else self._next_look_s - time.monotonic())
            if time.monotonic() >= self._next_look_s:
                self._look(ended=ended)
            self._submit(leases=leases)
            self._publish()

    def _ask_store(self) -> None:
        """Without a local record, learn from the store what it has of this job; else it is uploaded again."""
        if not self._asks_store:
            return
        try:
            records = read_records(self._store, self._job_id)
        except StoreError:
            return
        with self._changed:
            for record in records:
                if record.rank == self._rank:
                    self._shared.up = {path: each for path, each in record.files.items() if each.digest}

    def _look(self, *, ended: bool) -> None:
        try:
            found = {each.path: each.version for each in files_below(self._directory)}
        except OSError as error:
            self._failed(_LOOKING, f"looking through {self._directory}: {error.strerror}")
            return
        finally:
            with self._changed:
                # finish() wants another look at once, if it came meanwhile.
                if self._shared.ended == ended:
                    self._next_look_s = time.monotonic() + self._config.every_s
        with self._changed:
            self._note(found, time.monotonic(), after_end=ended)
        self._succeeded(_LOOKING)

    def _submit(self, *, leases: bool) -> None:
        with self._changed:
            due, ended = self._due(time.monotonic()), self._shared.ended
        for path, each in due:
            if leases and not ended and is_being_written(self._directory / path):
                continue
            with self._changed:
                self._shared.uploading.add(path)
            self._queue.put((path, each))

    def _publish(self) -> None:
        """Write the record here and to the store, where something changed since."""
        with self._changed:
            shared, all_up = self._shared, self._shared.ended and not self._shared.todo
            if not shared.dirty or (
                time.monotonic() < self._next_publish_s and not (all_up and not shared.record_failures)
            ):
                return
            shared.dirty = shared.published = False
            record = self._record()
        try:
            write_local(self._local, record)
        except OSError as error:
            self._failed(_RECORD, f"writing {self._local}: {error.strerror}")  # the store's goes on
        else:
            self._succeeded(_RECORD)
        try:
            self._store.put(record_key(self._job_id, self._rank), encoded(record))
        except StoreError as error:
            with self._changed:
                shared.dirty, shared.record_why = True, str(error)
                shared.record_failures += 1
                shared.record_lasting = 0 if isinstance(error, StoreAwayError) else shared.record_lasting + 1
                self._next_publish_s = time.monotonic() + self._pause_s(shared.record_failures)
                self._changed.notify_all()
            self._failed(_STORE_RECORD, str(error))
            return
        self._succeeded(_STORE_RECORD)
        with self._changed:
            shared.record_failures = shared.record_lasting = 0
            shared.published = record.ended
            self._next_publish_s = time.monotonic() + self._config.every_s
            self._changed.notify_all()

    def _failed(self, what: str, why: str) -> None:
        """Say it, unless something fails already."""
        with self._changed:
            first = not self._shared.failing
            self._shared.failing.add(what)
        if first:
            self._say(f"checkpoints: {why}; trying again until it succeeds")

    def _succeeded(self, what: str) -> None:
        """Say it, if that was the last thing that failed."""
        with self._changed:
            was = bool(self._shared.failing)
            self._shared.failing.discard(what)
            all_well = was and not self._shared.failing
        if all_well:
            self._say(f"checkpoints: uploads to {self._store.name} go on")

    # ---- the threads that upload ----------------------------------------------------------------

    def _upload_all(self) -> None:
        while (work := self._queue.get()) is not None:
            path, each = work
            try:
                digest = self._store.put_file(self._prefix + path, self._directory / path, self._is_closed)
            except ChangedFileError:
                with self._changed:
                    each.since_s = time.monotonic()
            except (StoreError, OSError) as error:
                self._put_off(path, each, error)
            except Exception as error:  # whatever a filesystem of fsspec's raises: the others go on
                self._put_off(path, each, StoreError(f"uploading {path}: {type(error).__name__}"))
            else:
                self._is_up(path, each, digest)
            finally:
                with self._changed:
                    self._shared.uploading.discard(path)
                    self._changed.notify_all()

    def _is_closed(self) -> bool:
        return self._shared.closed

    def _put_off(self, path: str, each: _File, error: Exception) -> None:
        with self._changed:
            each.why = str(error)
            each.failures += 1
            each.lasting = 0 if isinstance(error, StoreAwayError) else each.lasting + 1
            each.next_s = time.monotonic() + self._pause_s(each.failures)
        self._failed(path, str(error))

    def _is_up(self, path: str, each: _File, digest: str) -> None:
        now = version_of(self._directory / path)
        with self._changed:
            shared, version = self._shared, each.version
            shared.uploaded_bytes += version.size
            # Else it changed before it was read: what was uploaded is another version, which is next.
            if shared.todo.get(path) is each and now == version:
                del shared.todo[path]
                shared.up[path] = FileRecord(version.size, version.mtime_ns, digest)
            shared.dirty = True
        self._succeeded(path)


@contextmanager
def open_checkpoint_sync(
    directory: Path,
    store: CheckpointStore,
    job_id: str,
    *,
    record: Path,
    rank: int = 0,
    config: SyncConfig | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[CheckpointSync]:
    """Follow directory (BT_CHECKPOINT_DIR on the host) and keep the store's copy of it.

    record: the job's local record, e.g. home/checkpoints/<job>.json: written by this, read by
            list_checkpoints; what a crashed run had uploaded is not uploaded again
    say:    gets lines for the job's log (uploads failing, and again succeeding), from a thread
    Leaving without finish() stops uploading, for a crash or a stop that doesn't want to wait; nothing is lost
    locally. Files deleted by the job stay in the store; links are not uploaded. Raises ConfigError for a bad id.
    """
    sync = CheckpointSync(directory, store, job_id, record, rank, config or SyncConfig(), say)
    sync.start()
    try:
        yield sync
    finally:
        sync.close()


def _printable(path: str) -> str:
    """Return path, what is no UTF-8 in it escaped."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")
