"""Checkpoints on their way to object storage, while the job runs and at its end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.storage.checkpoint_store import CheckpointStore


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """quiet_s: how long a file must have been unchanged, and nobody writing to it, to count as finished.
    every_s: how often the directory is looked through. uploads: files at once.
    end_timeout_s: how long finish() waits by default.
    """

    quiet_s: float = 2.0
    every_s: float = 2.0
    uploads: int = 4
    end_timeout_s: float = 3600.0


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What finish() found. missing: (path below the directory, why) of each file that is not up.

    state: "COMPLETED", or "SYNCING" where something is missing; then the files stay in the directory and a
    CheckpointSync of the same job goes on where this one ended. said: one line for the job's log.
    """

    state: str
    files: int
    size_bytes: int
    uploaded_bytes: int
    missing: tuple[tuple[str, str], ...]
    said: str


class CheckpointSync:
    """One job's upload under way: threads of its own, alive inside `with open_checkpoint_sync(...)`."""

    def finish(self, timeout_s: float | None = None) -> SyncReport:
        """After the job's last process: every file there is is finished. Upload what is missing; wait for it.

        Tries again, with growing pauses, whatever may pass, until timeout_s (default the config's).
        Never raises for what the store does.
        """
        raise NotImplementedError


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
    say:    gets lines for the job's log (an upload failing, and again succeeding), from a thread
    Leaving without finish() stops uploading, for a crash or a stop that doesn't want to wait; nothing is lost
    locally. Files deleted by the job stay in the store. Raises OSError where record can't be read.
    """
    raise NotImplementedError
    yield
