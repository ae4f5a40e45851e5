"""What the storage tests store, and how they look at it."""

from pathlib import Path

import msgspec

from bdnfs.cache.node import NodeCache
from bdnfs.cache.rows import ChunkState
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.units import MIB
from bdnfs.manifest.model import Manifest
from bdnfs.origins.base import Origin
from benchmarks.servers.hub import HubServer
from tests.unit.cache.stocked import check_books, content, open_cache, shown, stock
from tests.unit.delivery.downloads import fill, hub_origin, listed, upstream

OLD = {"old.bin": content("old", 3 * MIB), "older.bin": content("older", 2 * MIB)}
NEW = {
    "config.json": b'{"new": true}',
    "empty.txt": b"",
    "model.safetensors": content("new", 2 * CHUNK_BYTES + 4097),
    "sub/same.safetensors": content("same", MIB),
    "sub/dir/same.safetensors": content("same", MIB),
}
NEW_BYTES = sum(map(len, NEW.values())) - MIB
# Hardly more than the new one: the old one has to go.
FIELDS = {"capacity_bytes": NEW_BYTES + 3 * MIB}
DELIVERY = {"sync_bytes": CHUNK_BYTES // 2, "config": upstream(fetches_max=2, attempts=2)}


def stocked(directory: Path) -> str:
    """Stock a cache with the old snapshot; return its id."""
    cache = open_cache(directory, **FIELDS)
    old = stock(cache, OLD, "0" * 40)
    cache.close()
    return old


def undigested(manifest: Manifest) -> Manifest:
    """Return the manifest as a store without digests lists it: only the index vouches for the bytes."""
    files = tuple(msgspec.structs.replace(file, digest=None) for file in manifest.files)
    return msgspec.structs.replace(manifest, files=files)


def manifest_of(origin: Origin, *, digests: bool = True) -> Manifest:
    manifest = listed(origin)
    return manifest if digests else undigested(manifest)


def check_trusted(cache: NodeCache) -> None:
    """Fail unless what the index trusts is on the disk: synced chunks, whole blobs; and books that agree.

    A chunk that is only filled is no promise: whoever opens a blob whose file is missing forgets it.
    """
    for blob, row in cache.blobs():
        with cache.read() as ledger:
            chunks = dict(ledger.chunks(blob))
        if not chunks:
            continue
        trusted = [index for index, chunk in chunks.items() if row.whole or chunk.state is ChunkState.SYNCED]
        assert not trusted or cache.layout.blob(blob).stat().st_size == row.size
        opened = cache.open_blob(blob, row.size)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for index in trusted:
            assert opened.digest(index, buffer) == chunks[index].digest, f"chunk {index} of {blob.hex()}"
        opened.close()
    check_books(cache)


def goes_on(directory: Path, hub: HubServer, old: str | None, *, digests: bool = True) -> None:
    """Open what is there: all it trusts is right, and a fill makes it whole."""
    cache = open_cache(directory, **FIELDS)
    origin = hub_origin(hub.url)
    try:
        check_trusted(cache)
        if old is not None:
            tree = cache.whole_tree(old)
            assert tree is None or shown(tree) == OLD
        assert shown(fill(cache, manifest_of(origin, digests=digests), origin, **DELIVERY)) == NEW
        check_trusted(cache)
    finally:
        origin.close()
        cache.close()
