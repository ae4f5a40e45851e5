"""What is known of a job's checkpoints: a small JSON file, beside the job and in the store.

In the store: `files/<job>/rank-<n>/<path>`, each file as it was, and `records/<job>/rank-<n>.json`, which names
those that are whole, written after them. Whoever reads checkpoints reads the record first.
"""

import os
import re
from pathlib import Path
from typing import Literal

import msgspec

from trainer.errors import ConfigError
from trainer.storage.checkpoint_store import CheckpointStore
from trainer.storage.errors import StoreError

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

State = Literal["SYNCING", "COMPLETED"]


class FileRecord(msgspec.Struct, frozen=True):
    """One file. digest: BLAKE3 of what is in the store, 64 hex digits; None while it is not there."""

    size: int
    mtime_ns: int
    digest: str | None = None


class SyncRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All files of one rank of a job, by their path below BT_CHECKPOINT_DIR. ended: no job writes any more."""

    format: int = FORMAT
    job_id: str
    rank: int = 0
    updated_s: float = 0.0
    ended: bool = False
    files: dict[str, FileRecord] = {}


def files_prefix(job_id: str, rank: int | None = None) -> str:
    """Return where a job's files are in the store."""
    top = f"files/{checked(job_id)}/"
    return top if rank is None else f"{top}rank-{rank}/"


def record_key(job_id: str, rank: int) -> str:
    return f"records/{checked(job_id)}/rank-{rank}.json"


def checked(job_id: str) -> str:
    """Return a job's id; raise ConfigError where it can't be part of a path."""
    if not _NAME.fullmatch(job_id):
        raise ConfigError(f"{job_id!r} is no job's id; see `trainer view`")
    return job_id


def read_records(store: CheckpointStore, job_id: str) -> list[SyncRecord]:
    """Return the store's records of a job, one for each rank; raise StoreError as the store does."""
    found = []
    for stored in sorted(store.list(f"records/{checked(job_id)}/")):
        content = store.get(stored.key)
        if content is not None and stored.key.endswith(".json"):
            found.append(_decoded(content, f"{stored.key} of {store.name}"))
    return found


def read_local(path: Path) -> SyncRecord | None:
    """Return the local record; None where there is none or it was torn: then the store's is what is known."""
    try:
        return _decoded(path.read_bytes(), str(path))
    except (FileNotFoundError, StoreError):
        return None


def write_local(path: Path, record: SyncRecord) -> None:
    """Replace the local record, whole or not at all; raise OSError as the disk does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.partial")
    try:
        with draft.open("wb") as file:
            file.write(encoded(record))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def encoded(record: SyncRecord) -> bytes:
    return msgspec.json.encode(record)


def _decoded(content: bytes, what: str) -> SyncRecord:
    try:
        record = msgspec.json.decode(content, type=SyncRecord)
    except (ValueError, RecursionError):
        raise StoreError(f"{what} is no record of checkpoints; was it written by something else?") from None
    if record.format > FORMAT:
        raise StoreError(f"{what} is of a newer trainer (format {record.format}); use that one")
    for path in record.files:
        if not path or path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
            raise StoreError(f"{what} names {path!r}, which would lead out of its directory; it is not used")
    return record
