"""Checkpoints that are up: listed, downloaded, and loaded by another job through the node cache."""

import dataclasses
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from blake3 import blake3

from trainer.errors import ConfigError
from trainer.storage.checkpoint_records import (
    FileRecord,
    State,
    SyncRecord,
    checked,
    files_prefix,
    read_local,
    read_records,
    write_local,
)
from trainer.storage.checkpoint_store import CheckpointStore, StoreConfig
from trainer.storage.errors import DamagedError, NoCheckpointError, SpaceError, StoreAwayError

T = TypeVar("T")
_DOWNLOADS = 4
_ATTEMPTS = 5
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One entry at the top of BT_CHECKPOINT_DIR, usually a directory such as checkpoint-100.

    state: COMPLETED once all its files are up, else SYNCING
    """

    job_id: str
    name: str
    rank: int
    files: int
    size_bytes: int
    modified_s: float
    state: State


class Wanted(NamedTuple):
    """A checkpoint to load: the one called name (a path below BT_CHECKPOINT_DIR), or else the newest.

    job_ids: where to look, the first that has one wins: a project's jobs, newest first
    """

    job_ids: Sequence[str]
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoadSource:
    """A weights entry for bdnfs: put it into the job's spec beside its weights."""

    source: str
    mount_location: str
    allow_patterns: tuple[str, ...] = ()
    auth_secret_name: str | None = None

    def as_weights(self) -> dict[str, object]:
        """Return it as an entry of a spec's `weights`."""
        entry = {name: value for name, value in dataclasses.asdict(self).items() if value}
        return entry | ({"allow_patterns": list(self.allow_patterns)} if self.allow_patterns else {})


def list_checkpoints(store: CheckpointStore, job_id: str, record: Path | None = None) -> list[Checkpoint]:
    """Return a job's checkpoints, oldest first; none: an empty list.

    record: the local record; it counts where it is newer than the store's, and where the store can't be asked
    Raises StoreError where the store can't be asked and there is no local record.
    """
    return _checkpoints(_records(store, job_id, record))


def load_sources(
    store: CheckpointStore,
    config: StoreConfig,
    wanted: Sequence[Wanted],
    download_folder: str = "/tmp/loaded_checkpoints",
    records: Path | None = None,
) -> list[LoadSource]:
    """Return what bdnfs is to mount so that each wanted checkpoint stands at download_folder/rank-N/<name>.

    records: the directory of local records (<job>.json), asked where the store can't be reached
    Raises NoCheckpointError where no such checkpoint is up (names those that are), ConfigError for two that would
    stand at the same place; StoreError where the store can't be asked and nothing is known locally.
    """
    chosen = [each for one in wanted for each in _choose(store, one, records)]
    found: list[LoadSource] = []
    for rank in sorted({each.rank for each in chosen}):
        here = list(dict.fromkeys(each for each in chosen if each.rank == rank))
        names = [each.name for each in here]
        for name in names:
            if names.count(name) > 1 or any(other.startswith(f"{name}/") for other in names):
                raise ConfigError(
                    f"load_checkpoint_config: two checkpoints would be rank-{rank}/{name}; load one"
                )
        place = f"{download_folder.rstrip('/')}/rank-{rank}"
        if all(each.is_directory for each in here):
            found += [
                LoadSource(
                    source=f"{store.source}/{files_prefix(each.job_id, rank)}{each.name}",
                    mount_location=f"{place}/{each.name}",
                    auth_secret_name=config.secret_name,
                )
                for each in here
            ]
            continue
        # A single file has no directory of its own to be mounted: then all come from one.
        if len({each.job_id for each in here}) > 1:
            raise ConfigError(
                f"load_checkpoint_config: {', '.join(names)} are of several jobs and not all of them directories; "
                "load those of one job, or let the job write each checkpoint into a directory"
            )
        found.append(
            LoadSource(
                source=f"{store.source}/{files_prefix(here[0].job_id, rank)}".rstrip("/"),
                mount_location=place,
                allow_patterns=tuple(_pattern(each) for each in here),
                auth_secret_name=config.secret_name,
            )
        )
    return found


def download_checkpoints(
    store: CheckpointStore, job_id: str, target: Path, names: Sequence[str] | None = None
) -> list[Path]:
    """Write checkpoints (all, or those named) to target/<rank-N>/<name>; verified; goes on after a crash.

    Returns the files written or found right already; what is not up yet is left out.
    Raises NoCheckpointError, DamagedError, SpaceError, StoreError, OSError as the target's disk does.
    """
    work: list[tuple[str, FileRecord, Path]] = []
    records = _records(store, job_id, None)
    for name in names or [""]:
        before = len(work)
        for record in records:
            for path, each in record.files.items():
                if each.digest and (not name or path == name or path.startswith(f"{name}/")):
                    key = files_prefix(job_id, record.rank) + path
                    work.append((key, each, target / f"rank-{record.rank}" / path))
        if len(work) == before:
            raise _none(job_id, name, _checkpoints(records))
    target.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        return list(pool.map(lambda each: _download(store, target, *each), dict.fromkeys(work)))


def take_over_record(store: CheckpointStore, job_id: str, record: Path, rank: int = 0) -> None:
    """Have the local record say what the store's own does; raise StoreError as the store does."""
    found = {each.rank: each for each in _again(lambda: read_records(store, job_id))}
    if rank in found:
        write_local(record, found[rank])
    else:
        record.unlink(missing_ok=True)


def delete_checkpoints(store: CheckpointStore, job_id: str) -> None:
    """Delete a job's checkpoints from the store; first what says that they are there."""
    _again(lambda: store.delete(f"records/{checked(job_id)}/"))
    _again(lambda: store.delete(files_prefix(job_id)))


def _records(store: CheckpointStore, job_id: str, local: Path | None) -> list[SyncRecord]:
    here = read_local(local) if local is not None else None
    try:
        found = {each.rank: each for each in read_records(store, job_id)}
    except StoreAwayError:
        # What is known here does; without it the store is asked again for a while.
        found = {}
        if here is None:
            found = {each.rank: each for each in _again(lambda: read_records(store, job_id))}
    if here is not None and (here.rank not in found or found[here.rank].updated_s < here.updated_s):
        found[here.rank] = here
    return [found[rank] for rank in sorted(found)]


def _checkpoints(records: Sequence[SyncRecord]) -> list[Checkpoint]:
    found = []
    for record in records:
        by_name: dict[str, list[FileRecord]] = {}
        for path, each in record.files.items():
            by_name.setdefault(path.partition("/")[0], []).append(each)
        for name, files in by_name.items():
            found.append(
                Checkpoint(
                    job_id=record.job_id,
                    name=name,
                    rank=record.rank,
                    files=len(files),
                    size_bytes=sum(each.size for each in files),
                    modified_s=max(each.mtime_ns for each in files) / 1e9,
                    state="COMPLETED" if all(each.digest for each in files) else "SYNCING",
                )
            )
    return sorted(found, key=lambda each: (each.modified_s, each.name, each.rank))


class _Chosen(NamedTuple):
    job_id: str
    rank: int
    name: str
    is_directory: bool


def _choose(store: CheckpointStore, wanted: Wanted, local: Path | None) -> Iterator[_Chosen]:
    """Yield the ranks of the wanted checkpoint."""
    known: list[Checkpoint] = []
    for job_id in wanted.job_ids:
        records = _records(store, job_id, local / f"{checked(job_id)}.json" if local else None)
        listed = _checkpoints(records)
        known += listed
        name = wanted.name
        if name is None:
            whole = [each for each in listed if each.state == "COMPLETED"]
            name = whole[-1].name if whole else ""
        found = []
        for record in records:
            files = {
                path: each
                for path, each in record.files.items()
                if path == name or path.startswith(f"{name}/")
            }
            if name and files and all(each.digest for each in files.values()):
                found.append(_Chosen(job_id, record.rank, name, name not in files))
        if found:
            yield from found
            return
    raise _none(", ".join(wanted.job_ids) or "this project", wanted.name or "", known)


def _none(job_id: str, name: str, known: Sequence[Checkpoint]) -> NoCheckpointError:
    what = f"checkpoint {name!r}" if name else "checkpoint"
    if not known:
        return NoCheckpointError(
            f"loading a {what} of {job_id}: it has none; was checkpointing_config enabled in that job?"
        )
    shown = ", ".join(f"{each.name} ({each.state})" for each in known[-10:])
    return NoCheckpointError(f"loading a {what} of {job_id}: no such one is up; there are: {shown}")


def _pattern(chosen: _Chosen) -> str:
    escaped = "".join(f"[{each}]" if each in "*?[" else each for each in chosen.name)
    return f"{escaped}/**" if chosen.is_directory else escaped


def _download(store: CheckpointStore, target: Path, key: str, record: FileRecord, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.resolve().is_relative_to(target.resolve()):
        raise ConfigError(
            f"{path.parent}: is a link out of {target}; remove it, or name another target directory"
        )
    is_there = not path.is_symlink() and path.is_file() and path.stat().st_size == record.size
    if is_there and _digest(path) == record.digest:
        return path
    draft = path.with_name(f".{path.name[:200]}.partial")

    def fetch() -> str:
        draft.unlink(missing_ok=True)
        return store.get_file(key, draft, record.size)

    try:
        found = _again(fetch)
        if found != record.digest:
            raise DamagedError(f"{key} of {store.name}: is not what was uploaded (its BLAKE3 differs)")
        os.utime(draft, ns=(record.mtime_ns, record.mtime_ns))
        draft.rename(path)
    except OSError as error:
        if error.errno is not None:
            raise SpaceError(f"downloading to {path}: {error.strerror}") from None
        raise
    finally:
        draft.unlink(missing_ok=True)
    return path


def _digest(path: Path) -> str:
    hasher = blake3()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            hasher.update(piece)
    return str(hasher.hexdigest())


def _again(act: Callable[[], T]) -> T:
    """Do act, several times where what failed may pass."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return act()
        except StoreAwayError:
            time.sleep(0.25 * 2.0**attempt * random.uniform(0.5, 1.0))
    return act()
