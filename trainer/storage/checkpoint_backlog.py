"""What of a job's checkpoints is in the store and what is not yet: decided here, without waiting for anything."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.storage.checkpoint_files import Version
from trainer.storage.checkpoint_records import FileRecord, State, SyncRecord, record_key
from trainer.storage.errors import StoreAwayError

# What the store says will not pass is tried this often at the job's end: credentials may just be changing.
_LASTING_FAILURES_MAX = 4
_SHOWN_MAX = 5


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """quiet_s: how long a file must have been unchanged, and nobody have it open for writing, to be finished.
    every_s: how often the directory is looked through. uploads: files at once.
    pause_s, pause_max_s: after the first failure, and at most; doubling in between.
    end_timeout_s: how long finish() waits by default, from the last file on that went up.
    """

    quiet_s: float = 2.0
    every_s: float = 2.0
    uploads: int = 4
    pause_s: float = 0.5
    pause_max_s: float = 30.0
    end_timeout_s: float = 3600.0

    def pause_after(self, failures: int) -> float:
        """Return the seconds until the next try, after so many failures in a row."""
        bound_s: float = min(self.pause_max_s, self.pause_s * 2.0 ** min(failures - 1, 20))
        return bound_s * random.uniform(0.5, 1.0)


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


@dataclass(frozen=True, kw_only=True)
class SyncProgress:
    """How far an upload is. files, size_bytes: of all there is; uploading: paths on their way now.

    counted: all that the job left is among them
    """

    files: int
    files_up: int
    size_bytes: int
    up_bytes: int
    uploading: tuple[str, ...] = ()
    counted: bool = True


@dataclass
class Tries:
    """How often something failed in a row, for good as far as the store says, and why; when it is tried again."""

    next_s: float = 0.0
    failures: int = 0
    lasting: int = 0
    why: str = ""

    @property
    def hopeless(self) -> bool:
        return self.lasting >= _LASTING_FAILURES_MAX

    def failed(self, error: Exception, config: SyncConfig) -> None:
        self.why = str(error)
        self.failures += 1
        self.lasting = 0 if isinstance(error, StoreAwayError) else self.lasting + 1
        self.next_s = time.monotonic() + config.pause_after(self.failures)


@dataclass
class Pending:
    """A file that is not up in this version; since_s: when that was first seen, of time.monotonic()."""

    version: Version
    since_s: float
    tries: Tries = field(default_factory=Tries)


@dataclass
class Backlog:
    """One rank of one job. Whoever calls holds the lock.

    up:        what the store has, by path; todo: what it has not; nameless: what can have no key
    uploads:   how many have succeeded
    uploading: paths on their way. One version of a path at a time: the older one must not arrive last.
    dirty:     the record says something else than this by now
    ended:     no job writes any more; looked_after_end: and all that it left is known
    published: the store's record is that of the end
    """

    job_id: str
    rank: int
    config: SyncConfig
    up: dict[str, FileRecord] = field(default_factory=dict)
    todo: dict[str, Pending] = field(default_factory=dict)
    nameless: set[str] = field(default_factory=set)
    uploading: set[str] = field(default_factory=set)
    uploads: int = 0
    uploaded_bytes: int = 0
    dirty: bool = True
    ended: bool = False
    looked_after_end: bool = False
    published: bool = False
    publishing: Tries = field(default_factory=Tries)

    def knows(self, record: SyncRecord) -> None:
        """Take over what an earlier run had uploaded."""
        self.up = {path: each for path, each in record.files.items() if each.digest}

    def end(self) -> None:
        """From now on every file is finished, and each is tried again at once."""
        self.ended = self.dirty = True
        self.publishing.next_s = 0.0
        for each in self.todo.values():
            each.tries.next_s, each.tries.lasting = 0.0, 0

    def found(self, files: Mapping[str, Version], now_s: float, *, after_end: bool) -> set[str]:
        """Take over what a look through the directory found; return the paths that are gone."""
        named = {path: version for path, version in files.items() if _printable(path) == path}
        self.nameless = {_printable(path) for path in files.keys() - named.keys()}
        for path, version in named.items():
            up = self.up.get(path)
            if up is not None and (up.size, up.mtime_ns) == (version.size, version.mtime_ns):
                self.dirty |= self.todo.pop(path, None) is not None
                continue
            known = self.todo.get(path)
            if known is None or known.version != version:
                # What the store has under this name is about to be replaced: nobody should count on it.
                self.up.pop(path, None)
                self.todo[path] = Pending(version, now_s)
                self.dirty = True
        gone = self.todo.keys() - named.keys()  # deleted, or renamed
        for path in gone:
            del self.todo[path]
            self.dirty = True
        self.looked_after_end |= after_end
        return gone

    def due(self, now_s: float) -> list[tuple[str, Pending]]:
        """Return what may be uploaded now, the oldest first."""
        due = [
            (path, each)
            for path, each in self.todo.items()
            if path not in self.uploading
            and each.tries.next_s <= now_s
            and (self.ended or now_s - each.since_s >= self.config.quiet_s)
            and not (self.ended and each.tries.hopeless)
        ]
        return sorted(due, key=lambda each: each[1].version.mtime_ns)

    def uploaded(self, path: str, each: Pending, now: Version | None, digest: str) -> None:
        """Note an upload that succeeded; now: the file's version after it."""
        self.uploads += 1
        self.uploaded_bytes += each.version.size
        # Else it changed before it was read: what was uploaded is another version, which is next.
        if self.todo.get(path) is each and now == each.version:
            del self.todo[path]
            self.up[path] = FileRecord(each.version.size, each.version.mtime_ns, digest)
        self.dirty = True

    def to_publish(self, now_s: float) -> SyncRecord | None:
        """Return the record to be written now, if it is to be."""
        all_up = self.ended and not self.todo and not self.publishing.failures
        if not self.dirty or (now_s < self.publishing.next_s and not all_up):
            return None
        self.dirty = self.published = False
        todo = {
            path: FileRecord(each.version.size, each.version.mtime_ns) for path, each in self.todo.items()
        }
        return SyncRecord(
            job_id=self.job_id,
            rank=self.rank,
            updated_s=time.time(),
            ended=self.ended,
            files=self.up | todo,
        )

    def is_done(self) -> bool:
        """Say whether there is nothing left that more waiting could bring about."""
        return (
            self.looked_after_end
            and all(each.tries.hopeless for each in self.todo.values())
            and ((self.published and not self.dirty) or self.publishing.hopeless)
        )

    def progress(self) -> SyncProgress:
        up_bytes = sum(each.size for each in self.up.values())
        todo = {path: each for path, each in self.todo.items() if path not in self.up}
        return SyncProgress(
            files=len(self.up) + len(todo),
            files_up=len(self.up),
            size_bytes=up_bytes + sum(each.version.size for each in todo.values()),
            up_bytes=up_bytes,
            uploading=tuple(sorted(self.uploading)),
            counted=self.looked_after_end,
        )

    def report(self, place: str, store: str) -> SyncReport:
        """Return how it stands; place, store: what the directory and the store are called."""
        missing = [(path, each.tries.why or "there was no time") for path, each in sorted(self.todo.items())]
        missing += [(path, "its name is no UTF-8; rename it") for path in sorted(self.nameless)]
        if not self.looked_after_end:
            missing.append(("", "the directory could not be looked through in time"))
        elif not missing and (self.dirty or not self.published):
            missing.append((record_key(self.job_id, self.rank), self.publishing.why or "there was no time"))
        files, size_bytes = len(self.up), sum(each.size for each in self.up.values())
        said = f"checkpoints: all {files} file(s), {size_bytes:,} bytes, are at {store}"
        if missing:
            shown = "; ".join(f"{path} ({why})" if path else why for path, why in missing[:_SHOWN_MAX])
            more = f"; and {len(missing) - _SHOWN_MAX} more" if len(missing) > _SHOWN_MAX else ""
            said = (
                f"checkpoints: {len(missing)} file(s) are NOT at {store}: {shown}{more}. They stay in {place}; "
                f"{files} others are up"
            )
        return SyncReport(
            state="SYNCING" if missing else "COMPLETED",
            files=files,
            size_bytes=size_bytes,
            uploaded_bytes=self.uploaded_bytes,
            missing=tuple(missing),
            said=said,
        )


def _printable(path: str) -> str:
    """Return path, what is no UTF-8 in it escaped."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")
