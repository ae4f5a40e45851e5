"""A snapshot's record: its manifest and the blob of each file, in a file that outlives the index."""

import os
import secrets
from contextlib import suppress

import msgspec
from blake3 import blake3

from bdnfs.cache.layout import Layout, read_file
from bdnfs.cache.rows import Record
from bdnfs.cache.storage import storage_error
from bdnfs.core.errors import UNREADABLE
from bdnfs.manifest.model import Manifest

_SUM_BYTES = 32
_decoder = msgspec.msgpack.Decoder(Record)


def snapshot_id(manifest: Manifest, salt: str = "") -> str:
    """Return the snapshot's name: BLAKE3 of its manifest's msgpack (and a window's salt), 64 hex digits."""
    return blake3(msgspec.msgpack.encode(manifest) + salt.encode()).hexdigest()


def read_record(layout: Layout, snapshot: str) -> Record | None:
    """Return the snapshot's record; None where there is none or it is damaged."""
    try:
        data = read_file(layout.snapshots / snapshot)
    except OSError:
        return None
    body, checksum = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
    if blake3(body).digest() != checksum:
        return None
    try:
        record = _decoder.decode(body)
    except UNREADABLE:
        return None
    return record if len(record.blobs) == len(record.manifest.files) else None


def write_record(layout: Layout, snapshot: str, record: Record) -> None:
    """Write and sync the record, all at once; raise SpaceError or CacheError where that fails."""
    body = msgspec.msgpack.encode(record)
    path = layout.snapshots / snapshot
    draft = layout.snapshots / f".{snapshot}.{secrets.token_hex(4)}"
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(body + blake3(body).digest())
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise storage_error(path, "written", error) from error
