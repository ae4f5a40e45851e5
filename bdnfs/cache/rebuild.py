"""A lost or broken index, made again from what lies on the disk: records, blobs, and their hashes.

A blob counts again only if upstream's own digest of the whole file says so. One without such a
digest can't be told from a damaged one, so it is fetched again. Files that no record names go.
"""

import os
import time
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from bdnfs.cache.blobs import Blob
from bdnfs.cache.filling import aliases
from bdnfs.cache.index import Index
from bdnfs.cache.layout import Layout, delete
from bdnfs.cache.ledger import Ledger, selection_key
from bdnfs.cache.locks import lock_until, open_lock_file, who_holds
from bdnfs.cache.records import read_record
from bdnfs.cache.rows import BlobRow, ChunkRow, ChunkState, Record, SnapshotRow
from bdnfs.core.errors import BdnfsError, CacheError, IntegrityError
from bdnfs.core.ranges import CHUNK_BYTES, chunk_range
from bdnfs.core.steps import reach
from bdnfs.manifest.model import FileEntry
from bdnfs.volume.digests import open_digest

_NOBODY = bytes(8)


class _Found(NamedTuple):
    """A blob found good. digests: of its chunks."""

    inode: int
    mtime_ns: int
    digests: list[bytes]


def ensure_built(layout: Layout, index: Index, timeout_s: float) -> None:
    """Fill a new index from what the directory holds; return at once where that has been done.

    Raises CacheError where another process is at it for longer than timeout_s.
    """
    if _is_built(index):
        return
    path = layout.root / "rebuild.lock"
    fd = open_lock_file(path)
    try:
        if not lock_until(fd, exclusive=True, deadline_s=time.monotonic() + timeout_s):
            who = who_holds(path)
            raise CacheError(
                f"{layout.root}: its index is being rebuilt for {timeout_s:g} s by {who}; try later"
            )
        if not _is_built(index):
            rebuild(layout, index)
    finally:
        os.close(fd)


def _is_built(index: Index) -> bool:
    with index.read() as txn:
        return Ledger(txn).built


def rebuild(layout: Layout, index: Index) -> None:
    """Enter every snapshot whose record is readable, the latest last: its branch is where it was seen."""
    found: dict[bytes, _Found | None] = {}
    entries = [entry for entry in os.scandir(layout.snapshots) if not entry.name.startswith(".")]
    for entry in sorted(entries, key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns):
        name = entry.name
        record = read_record(layout, name)
        if record is None or record.salt:
            continue  # a window was of no use to anybody but its daemon
        for file, blob in zip(record.manifest.files, record.blobs, strict=True):
            if blob and blob not in found:
                found[blob] = _check(layout.blob(blob), blob, file)
        with index.write() as txn:
            _enter(Ledger(txn), layout, name, record, found)
        reach("rebuild:entered")
    with index.write() as txn:
        ledger = Ledger(txn)
        unnamed = [path for path in layout.blobs.glob("*/*") if not _is_named(ledger, path.name)]
        graves = [layout.bury(path) for path in unnamed]
        reach("rebuild:buried")
        ledger.set_built()
    delete([grave for grave in graves if grave is not None])


def _is_named(ledger: Ledger, name: str) -> bool:
    try:
        return ledger.blob(bytes.fromhex(name)) is not None
    except ValueError:
        return False


def _check(path: Path, blob: bytes, file: FileEntry) -> _Found | None:
    """Rehash a blob; return what it is if its whole digest is upstream's, else None."""
    if file.digest is None or not path.exists():
        return None
    expected = file.digest.partition(":")[2]
    try:
        whole = open_digest(file)
    except IntegrityError:
        return None
    assert whole is not None
    buffer = memoryview(bytearray(CHUNK_BYTES))
    digests = []
    try:
        opened = Blob(path, blob, file.size, writable=False)
    except (OSError, BdnfsError):
        return None
    try:
        opened.sync()
        opened.drop_pages()
        for number in range(file.chunks):
            start, stop = chunk_range(file.size, number)
            piece = buffer[: stop - start]
            opened.read(start, piece)
            whole.update(piece)
            digests.append(blake3(piece).digest())
        if whole.hexdigest() != expected:
            return None
        inode, mtime_ns = opened.seal()
        opened.sync()
        return _Found(inode, mtime_ns, digests)
    except BdnfsError:
        return None
    finally:
        opened.close()


def _enter(
    ledger: Ledger, layout: Layout, name: str, record: Record, found: dict[bytes, _Found | None]
) -> None:
    """Enter a snapshot and its blobs, except what a running process has entered meanwhile."""
    for file, blob in zip(record.manifest.files, record.blobs, strict=True):
        if blob and ledger.blob(blob) is None:
            _enter_blob(ledger, layout, blob, file, found[blob], record.manifest.tenant)
    if ledger.snapshot(name) is None:
        rows = [ledger.blob(blob) for blob in record.blobs if blob]
        whole = all(row is not None and row.whole for row in rows)
        ledger.put_snapshot(name, SnapshotRow.of(record.manifest, whole=whole))
        if not whole:
            layout.bury(layout.tree(name))
    revision = record.manifest.revision
    ledger.select(selection_key(record.selection, "at", revision), name)
    ledger.select(selection_key(record.selection, "ref", record.branch or ""), revision)


def _enter_blob(
    ledger: Ledger, layout: Layout, blob: bytes, file: FileEntry, found: _Found | None, tenant: str
) -> None:
    if found is None:
        layout.bury(layout.blob(blob))  # a new file, not a mended one: it may be mounted
        ledger.put_blob(blob, BlobRow(size=file.size, charged=0))
        return
    for number, digest in enumerate(found.digests):
        ledger.put_chunk(blob, number, ChunkRow(ChunkState.SYNCED, _NOBODY, digest))
    known = aliases(file.size, found.digests, file.digest, tenant)
    row = BlobRow(
        size=file.size,
        charged=file.size,
        present=file.size,
        whole=True,
        inode=found.inode,
        mtime_ns=found.mtime_ns,
        digests=known,
    )
    ledger.put_blob(blob, row)
    for digest_name in known:
        ledger.put_alias(digest_name, blob)
