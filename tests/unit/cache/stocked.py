"""Node caches to test with: snapshots made of bytes in memory, filled without any network."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from bdnfs.cache.node import ChunkRef, NodeCache, Seal
from bdnfs.cache.pins import Pin, Scanner
from bdnfs.cache.rows import ChunkRow, ChunkState
from bdnfs.core.ranges import chunk_range
from bdnfs.core.units import MIB
from bdnfs.manifest.model import FileEntry, Manifest
from bdnfs.spec.config import CacheConfig

ROOT = Path(__file__).parents[3]
WAIT_S = 30.0
SELECTION = "hf://org/model\0https://hub.test\0"
Files = Mapping[str, bytes]


@dataclass
class Mounts:
    """A mount table in memory: the roots of what is mounted."""

    roots: set[str] = field(default_factory=set)
    complete: bool = True

    def has_root(self, suffix: str) -> bool:
        return any(root.endswith(suffix) for root in self.roots)

    def __call__(self) -> "Mounts":
        return self


def content(name: str, size: int) -> bytes:
    """Return bytes that are another name's nowhere."""
    return blake3(name.encode()).digest(length=size)


def manifest_of(
    files: Files,
    revision: str = "1" * 40,
    *,
    origin: str = "hf https://hub.test org/model",
    digests: bool = True,
) -> Manifest:
    entries = (
        FileEntry(
            path,
            len(data),
            f"sha256:{hashlib.sha256(data).hexdigest()}" if digests else None,
            identity=hashlib.md5(data).hexdigest(),
        )
        for path, data in sorted(files.items())
    )
    return Manifest("hf://org/model", origin, revision, tuple(entries))


def open_cache(directory: Path, mounts: Scanner | None = None, **fields: object) -> NodeCache:
    """Open a cache there: no cap, no reserve, a lock's deadline that a test can wait for."""
    timeouts = {name: fields.pop(name) for name in ("lock_timeout_s", "rebuild_timeout_s") if name in fields}
    config = CacheConfig(str(directory), **{"reserve_bytes": 0, **fields})  # type: ignore[arg-type]
    return NodeCache(config, mounts or Mounts(), **{"lock_timeout_s": WAIT_S, **timeouts})  # type: ignore[arg-type]


def admit(cache: NodeCache, manifest: Manifest, **fields: bool) -> tuple[str, Pin]:
    return cache.admit(manifest, SELECTION, "main", "", **fields)


def write_chunk(cache: NodeCache, blob_id: bytes, data: bytes, index: int) -> None:
    """Bring one chunk of the blob as a fetcher does."""
    blob = cache.open_blob(blob_id, len(data))
    try:
        start, stop = chunk_range(len(data), index)
        assert blob.claim(index)
        digest = blob.write(index, memoryview(data)[start:stop])
        cache.commit([(ChunkRef(blob_id, index), ChunkRow(ChunkState.FILLED, cache.writer, digest))])
    finally:
        blob.close()


def seal(cache: NodeCache, blob_id: bytes, data: bytes, digest: str | None) -> None:
    """Finish the blob as a sealer does."""
    blob = cache.open_blob(blob_id, len(data))
    try:
        inode, mtime_ns = blob.seal()
        blob.sync()
        assert not cache.publish_blobs([Seal(blob_id, digest, inode, mtime_ns)])
    finally:
        blob.close()


def fill(cache: NodeCache, snapshot: str, files: Files) -> Path:
    """Bring all that is missing of an admitted snapshot; return its tree."""
    record = cache.record(snapshot)
    assert record is not None
    for file, blob_id in zip(record.manifest.files, record.blobs, strict=True):
        if blob_id and not cache.is_whole(blob_id):
            data = files[file.path]
            present = cache.open_blob(blob_id, len(data)).present
            for index, here in enumerate(present):
                if not here:
                    write_chunk(cache, blob_id, data, index)
            seal(cache, blob_id, data, file.digest)
    return cache.publish_snapshot(snapshot)


def stock(cache: NodeCache, files: Files, revision: str = "1" * 40, *, keep: bool = False) -> str:
    """Admit and fill a snapshot; return its id. keep: its pin stays."""
    snapshot, pin = admit(cache, manifest_of(files, revision))
    fill(cache, snapshot, files)
    if not keep:
        pin.close()
    return snapshot


def shown(tree: Path) -> dict[str, bytes]:
    """Return what a reader of the tree sees."""
    return {
        path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*") if path.is_file()
    }


def check_books(cache: NodeCache) -> None:
    """Fail unless what the index counts is what it lists, and what it lists is what lies there."""
    with cache.read() as ledger:
        rows = dict(ledger.blobs())
        copied = sum(row.copied_bytes for _, row in ledger.snapshots())
        assert ledger.present_bytes == sum(row.present for row in rows.values()) + copied
        assert ledger.charged_bytes == sum(row.charged for row in rows.values()) + copied
        for blob, row in rows.items():
            chunks = dict(ledger.chunks(blob))
            lengths = (stop - start for start, stop in (chunk_range(row.size, index) for index in chunks))
            assert row.present == sum(lengths)
            assert row.charged >= row.present
            if chunks:
                assert cache.layout.blob(blob).stat().st_size == row.size
        capacity = cache.config.capacity_bytes
        assert capacity is None or ledger.charged_bytes <= capacity


def orphans(cache: NodeCache) -> set[str]:
    """Return what lies in the cache directory and belongs to no row."""
    layout = cache.layout
    with cache.read() as ledger:
        blobs = {layout.blob(blob) for blob, _ in ledger.blobs()}
        snapshots = {name for name, _ in ledger.snapshots()}
    found = {path for path in layout.blobs.glob("*/*") if path not in blobs}
    for directory in (layout.snapshots, layout.trees, layout.pins):
        found |= {path for path in directory.iterdir() if path.name not in snapshots}
    found |= set(layout.trash.iterdir())
    return {str(path.relative_to(layout.root)) for path in found}


def disk_bytes(directory: Path) -> int:
    """Return what the files below take on the disk, each inode once."""
    seen = {
        path.lstat().st_ino: path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file()
    }
    return sum(seen.values())


def python(code: str, *arguments: object, prefix: Sequence[str] = ()) -> "subprocess.Popen[str]":
    """Start Python code in a process of its own; its arguments are sys.argv[1:]. prefix: what runs it."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(processes: Iterable["subprocess.Popen[str]"], limit_s: float = WAIT_S) -> list[str]:
    """Wait for processes; return what each printed. Fail where one fails or takes longer."""
    said = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        assert process.returncode == 0, err
        said.append(out)
    return said


def until(condition: Callable[[], object], what: str, limit_s: float = WAIT_S) -> None:
    """Wait for what another process brings about; fail after limit_s."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {limit_s:g} s for {what}"
        time.sleep(0.01)


def line_of(process: "subprocess.Popen[str]") -> str:
    """Return the next line a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


FEW = {
    "config.json": b"{}",
    "model.bin": content("model", 3 * MIB),
    "empty": b"",
    "sub/dir/x": content("x", 17),
}
TWO_CHUNKS = content("two chunks", 8 * MIB + 4097)
is_root = os.geteuid() == 0
