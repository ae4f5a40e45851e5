"""Checkpoints on their way to object storage, while the job runs and at its end.

One thread looks through the directory; a few upload. They are daemons: a store that hangs keeps nobody from
ending. What there is to do is decided by the backlog, under one lock, and nothing waits inside that.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.storage.checkpoint_backlog import Backlog, Pending, SyncConfig, SyncProgress, SyncReport
from trainer.storage.checkpoint_files import files_below, has_leases, is_being_written, version_of
from trainer.storage.checkpoint_records import (
    encoded,
    files_prefix,
    read_local,
    read_records,
    record_key,
    write_local,
)
from trainer.storage.checkpoint_store import ChangedFileError, CheckpointStore
from trainer.storage.errors import StoreError

__all__ = ["CheckpointSync", "SyncConfig", "SyncProgress", "SyncReport", "open_checkpoint_sync"]

# Work that can fail beside the files, by names that no file has.
_LOOKING, _RECORD, _STORE_RECORD = "//directory", "//record", "//record in the store"
# At the end whoever uploads says when there is something to do; this is for what is tried again.
_END_LOOKS_S = 0.05
# Whoever waits for the end is told how far it is when something changes; not oftener, and not seldomer, than this.
_TELLS_MIN_S, _TELLS_MAX_S = 0.2, 1.0
# For a thread that the store keeps waiting; it is a daemon.
_CLOSE_S = 1.0


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
        self._directory, self._store, self._local, self._say = directory, store, record, say
        self._config = config
        self._prefix, self._record_key = files_prefix(job_id, rank), record_key(job_id, rank)
        self._changed = threading.Condition()
        self._backlog = Backlog(job_id, rank, config)
        self._failing: set[str] = set()
        self._closed = self._silent = False
        self._saying = threading.Lock()
        self._next_look_s = 0.0
        self._queue: queue.SimpleQueue[tuple[str, Pending] | None] = queue.SimpleQueue()
        known = read_local(record)
        self._asks_store = known is None
        if known is not None:
            self._backlog.knows(known)
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
            self._closed = True
            self._changed.notify_all()
        for _ in self._threads[1:]:
            self._queue.put(None)
        deadline_s = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        # The log may be closed from here on, and its descriptor be another file's.
        with self._saying:
            self._silent = True

    def finish(
        self,
        timeout_s: float | None = None,
        goes_on: Callable[[SyncProgress], bool] = lambda progress: True,
    ) -> SyncReport:
        """After the job's last process: every file there is is finished. Upload what is missing; wait for it.

        Tries again, with growing pauses, whatever may pass, until for timeout_s (default the config's) nothing has
        gone up, or goes_on says no. It is told how far this is, in the caller's thread, at least once a second.
        Never raises for what the store does.
        """
        timeout_s = self._config.end_timeout_s if timeout_s is None else timeout_s
        deadline_s, told_s, going = time.monotonic() + timeout_s, 0.0, True
        with self._changed:
            self._backlog.end()
            self._next_look_s = 0.0
            self._changed.notify_all()
            uploads = self._backlog.uploads
        while True:
            with self._changed:
                if self._backlog.uploads != uploads:
                    uploads, deadline_s = self._backlog.uploads, time.monotonic() + timeout_s
                left_s = deadline_s - time.monotonic()
                if self._backlog.is_done() or left_s <= 0 or not going:
                    return self._backlog.report(str(self._directory), self._store.name)
                if time.monotonic() < told_s + _TELLS_MIN_S:
                    self._changed.wait(min(left_s, _TELLS_MIN_S))
                    continue
                progress = self._backlog.progress()
            going, told_s = goes_on(progress), time.monotonic()
            with self._changed:
                if going and not self._backlog.is_done():
                    self._changed.wait(min(left_s, _TELLS_MAX_S))

    # ---- the thread that follows the directory --------------------------------------------------

    def _follow(self) -> None:
        self._ask_store()
        leases = has_leases(self._directory)
        while True:
            with self._changed:
                if self._closed:
                    return
                ended, left_s = self._backlog.ended, self._next_look_s - time.monotonic()
                if left_s > 0:
                    self._changed.wait(min(left_s, _END_LOOKS_S) if ended else left_s)
            if time.monotonic() >= self._next_look_s:
                self._look(ended=ended)
            self._submit(leases=leases)
            self._publish()

    def _ask_store(self) -> None:
        """Without a local record, learn from the store what it has of this job; else it is uploaded again."""
        if not self._asks_store:
            return
        try:
            records = read_records(self._store, self._backlog.job_id)
        except StoreError:
            return
        with self._changed:
            for record in records:
                if record.rank == self._backlog.rank:
                    self._backlog.knows(record)

    def _look(self, *, ended: bool) -> None:
        try:
            files = {each.path: each.version for each in files_below(self._directory)}
        except OSError as error:
            self._failed(_LOOKING, f"looking through {self._directory}: {error.strerror}")
            return
        finally:
            with self._changed:
                # finish() wants another look at once, if it came meanwhile.
                if self._backlog.ended == ended:
                    self._next_look_s = time.monotonic() + self._config.every_s
        with self._changed:
            self._failing -= self._backlog.found(files, time.monotonic(), after_end=ended)
            self._changed.notify_all()
        self._succeeded(_LOOKING)

    def _submit(self, *, leases: bool) -> None:
        with self._changed:
            due, ended = self._backlog.due(time.monotonic()), self._backlog.ended
        for path, each in due:
            if leases and not ended and is_being_written(self._directory / path):
                continue
            with self._changed:
                self._backlog.uploading.add(path)
            self._queue.put((path, each))

    def _publish(self) -> None:
        """Write the record here and to the store, where something changed since."""
        with self._changed:
            record = self._backlog.to_publish(time.monotonic())
        if record is None:
            return
        try:
            write_local(self._local, record)
        except OSError as error:
            self._failed(_RECORD, f"writing {self._local}: {error.strerror}")  # the store's goes on
        else:
            self._succeeded(_RECORD)
        publishing = self._backlog.publishing
        try:
            self._store.put(self._record_key, encoded(record))
        except StoreError as error:
            with self._changed:
                self._backlog.dirty = True
                publishing.failed(error, self._config)
                self._changed.notify_all()
            self._failed(_STORE_RECORD, str(error))
            return
        self._succeeded(_STORE_RECORD)
        with self._changed:
            publishing.failures = publishing.lasting = 0
            publishing.next_s = time.monotonic() + self._config.every_s
            self._backlog.published = record.ended
            self._changed.notify_all()

    # ---- the threads that upload ----------------------------------------------------------------

    def _upload_all(self) -> None:
        while (work := self._queue.get()) is not None:
            path, each = work
            try:
                self._upload(path, each)
            finally:
                with self._changed:
                    self._backlog.uploading.discard(path)
                    self._changed.notify_all()

    def _upload(self, path: str, each: Pending) -> None:
        file = self._directory / path
        try:
            digest = self._store.put_file(self._prefix + path, file, lambda: self._closed)
        except ChangedFileError:
            with self._changed:
                each.since_s = time.monotonic()
            return
        except Exception as error:  # whatever a filesystem of fsspec's raises: the others go on
            told = isinstance(error, StoreError | OSError)
            why = error if told else StoreError(f"uploading {path}: {type(error).__name__}")
            with self._changed:
                each.tries.failed(why, self._config)
            self._failed(path, str(why))
            return
        now = version_of(file)
        with self._changed:
            self._backlog.uploaded(path, each, now, digest)
        self._succeeded(path)

    # ---- what the job's log is told -------------------------------------------------------------

    def _failed(self, what: str, why: str) -> None:
        """Say it, unless something fails already."""
        with self._changed:
            first = not self._failing
            self._failing.add(what)
        if first:
            self._tell(f"checkpoints: {why}; trying again until it succeeds")

    def _succeeded(self, what: str) -> None:
        """Say it, if that was the last thing that failed."""
        with self._changed:
            was = bool(self._failing)
            self._failing.discard(what)
            all_well = was and not self._failing
        if all_well:
            self._tell(f"checkpoints: uploads to {self._store.name} go on")

    def _tell(self, line: str) -> None:
        with self._saying:
            if not self._silent:
                self._say(line)


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
    say:    gets lines for the job's log (uploads failing, and again succeeding), from a thread; none after the block
    Leaving without finish() stops uploading, for a crash or a stop that doesn't want to wait; nothing is lost
    locally. Files deleted by the job stay in the store; links are not uploaded. Raises ConfigError for a bad id.
    """
    sync = CheckpointSync(directory, store, job_id, record, rank, config or SyncConfig(), say)
    sync.start()
    try:
        yield sync
    finally:
        sync.close()
