"""What the index remembers, and how its rows are packed (msgpack arrays; docs/format.md)."""

import enum
import time
from typing import NamedTuple

import msgspec

from bdnfs.manifest.model import Manifest

# 2 would be a migration; a newer one is refused.
FORMAT = 1


_CHUNK_ROW_BYTES = 41  # state, writer, digest


class ChunkState(enum.IntEnum):
    """How far a chunk can be trusted."""

    FILLED = 1  # its writer lives, its hash is known, its bytes may be in memory only
    SYNCED = 2  # its bytes have reached the disk


class ChunkRow(NamedTuple):
    """One present chunk. writer: who filled it (8 bytes). digest: BLAKE3-256 of its bytes."""

    state: ChunkState
    writer: bytes
    digest: bytes

    def pack(self) -> bytes:
        return bytes((self.state,)) + self.writer + self.digest

    @classmethod
    def unpack(cls, data: bytes) -> "ChunkRow":
        """Return the row packed as data; ValueError where it is none."""
        if len(data) != _CHUNK_ROW_BYTES:
            raise ValueError(f"{len(data)} bytes, not {_CHUNK_ROW_BYTES}")
        return cls(ChunkState(data[0]), data[1:9], data[9:41])


class ChunkRef(NamedTuple):
    """A chunk's place: its blob and its number in it."""

    blob_id: bytes
    number: int


class Seal(NamedTuple):
    """A blob about to be whole. digest: what its content was verified to be, if anything; tenant: whose it is."""

    blob_id: bytes
    digest: str | None
    inode: int
    mtime_ns: int
    tenant: str = ""


class BlobRow(msgspec.Struct, frozen=True, array_like=True):
    """One file version on the node.

    charged:  bytes that count against the capacity (all of it while it is being filled)
    present:  bytes of chunks that have a row
    whole:    sealed: verified, synced, never written again; then inode and mtime_ns are its own
    digests:  what its content was verified to be (`sha256:…`): its aliases
    """

    size: int
    charged: int
    present: int = 0
    whole: bool = False
    inode: int = 0
    mtime_ns: int = 0
    digests: tuple[str, ...] = ()


class SnapshotRow(msgspec.Struct, frozen=True, array_like=True):
    """One snapshot the node knows. Times are seconds since the epoch.

    window:       it was mounted with `--no-fill`; of no use to anyone once its daemon is gone
    copies:       inodes of its tree's files that are copies, not links (65,000 links are taken)
    copied_bytes: what those take, beside the blobs
    tenant:       whose it is, "" for nobody's in particular
    """

    source: str
    revision: str
    files: int
    size: int
    whole: bool
    created_s: float
    used_s: float
    pinned_until_s: float = 0.0
    patterns: str = ""
    window: bool = False
    copies: tuple[int, ...] = ()
    copied_bytes: int = 0
    tenant: str = ""

    @classmethod
    def of(
        cls, manifest: Manifest, *, whole: bool = False, patterns: str = "", window: bool = False
    ) -> "SnapshotRow":
        """Return the row of a snapshot that is new now."""
        now_s = time.time()
        return cls(
            source=manifest.source,
            revision=manifest.revision,
            files=len(manifest.files),
            size=manifest.total_bytes,
            whole=whole,
            created_s=now_s,
            used_s=now_s,
            patterns=patterns,
            window=window,
            tenant=manifest.tenant,
        )


class Record(msgspec.Struct, frozen=True):
    """What `snapshots/<id>` holds: the manifest, and the blob of each of its files.

    blobs:     32 bytes for each file of the manifest, in its order; empty for an empty file
    selection: which source and patterns it answers, and the branch it was: for a rebuilt index
    salt:      makes the snapshot and its blobs one window's own (`--no-fill`); else empty
    """

    manifest: Manifest
    blobs: tuple[bytes, ...]
    selection: str = ""
    branch: str | None = None
    salt: str = ""
