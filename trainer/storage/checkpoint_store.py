"""Where checkpoints are kept: a bucket, or a directory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """url: s3://bucket/prefix, gs://, azure://account/container/prefix, r2://account.bucket/, cw://bucket/,
    file:///directory, or another that fsspec opens: the same that bdnfs takes as a source.

    secret:      the credential's text, in the form bdnfs documents for the scheme; None: the environment's
    secret_name: what it is called; load_sources puts it into the sources' auth
    """

    url: str
    secret: str | None = None
    secret_name: str | None = None
    environment: Mapping[str, str] | None = None


class Stored(NamedTuple):
    key: str
    size_bytes: int


class CheckpointStore(Protocol):
    """Objects below one prefix. Every call ends by a deadline; raises UnavailableError for what may pass,
    CredentialsError, NotFoundError, SpaceError or UpstreamError for what will not.
    """

    name: str

    def put_file(self, key: str, path: Path) -> str:
        """Upload a file, visible only once whole; return the BLAKE3 of what was sent."""

    def get_file(self, key: str, path: Path) -> str:
        """Write an object to a new file; return its BLAKE3."""

    def put(self, key: str, data: bytes) -> None: ...

    def get(self, key: str) -> bytes: ...

    def list(self, prefix: str) -> Iterator[Stored]: ...

    def delete(self, prefix: str) -> None: ...


def open_checkpoint_store(config: StoreConfig) -> CheckpointStore:
    """Return the store a URL names; asks it nothing yet. Raises SpecError for a URL nothing opens."""
    raise NotImplementedError
