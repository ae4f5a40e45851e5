"""Checkpoints that are up: listed, downloaded, and loaded by another job through the node cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from trainer.storage.checkpoint_store import CheckpointStore, StoreConfig


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One entry at the top of BT_CHECKPOINT_DIR, usually a directory such as checkpoint-100.

    state: COMPLETED once all its finished files are up, else SYNCING
    """

    job_id: str
    name: str
    rank: int
    files: int
    size_bytes: int
    modified_s: float
    state: Literal["SYNCING", "COMPLETED"]


class Wanted(NamedTuple):
    """A checkpoint to load: of one of job_ids (the newest of all of them), or the one called name."""

    job_ids: Sequence[str]
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoadSource:
    """A weights entry for bdnfs: put it into the job's spec beside its weights. JSON-able by as_weights()."""

    source: str
    mount_location: str
    allow_patterns: tuple[str, ...] = ()
    auth_secret_name: str | None = None

    def as_weights(self) -> dict[str, object]:
        """Return it as an entry of a spec's `weights`."""
        raise NotImplementedError


def list_checkpoints(store: CheckpointStore, job_id: str, record: Path | None = None) -> list[Checkpoint]:
    """Return a job's checkpoints, oldest first; of the store's record, or the local one where that is newer
    or the store can't be reached. No record: an empty list.
    """
    raise NotImplementedError


def load_sources(
    store: CheckpointStore,
    config: StoreConfig,
    wanted: Sequence[Wanted],
    download_folder: str = "/tmp/loaded_checkpoints",
    records: Path | None = None,
) -> list[LoadSource]:
    """Return what bdnfs is to mount so that each wanted checkpoint stands at download_folder/rank-N/<name>.

    records: the directory of local records (<job>.json), asked where the store can't be reached
    Raises NotFoundError where a job has no such checkpoint (names those it has); UnavailableError where the
    store can't be asked and nothing is known locally.
    """
    raise NotImplementedError


def download_checkpoints(
    store: CheckpointStore, job_id: str, target: Path, names: Sequence[str] | None = None
) -> list[Path]:
    """Write checkpoints (all, or those named) to target/<rank-N>/<name>; verified; goes on after a crash.

    Returns the files written or found right already. Raises NotFoundError, IntegrityError, SpaceError, …
    """
    raise NotImplementedError


def delete_checkpoints(store: CheckpointStore, job_id: str) -> None:
    """Delete a job's checkpoints and its record from the store."""
    raise NotImplementedError
