"""`mirror verify --repair`: what is damaged in the mirror comes from upstream again, at the revision it had."""

import msgspec
import trio

from bdnfs.core.errors import BdnfsError, IntegrityError
from bdnfs.core.progress import Counters
from bdnfs.core.ranges import chunk_range
from bdnfs.delivery.ingest import ingest_from
from bdnfs.delivery.resolve import list_snapshot
from bdnfs.manifest.model import Manifest
from bdnfs.mirror.checking import Damage
from bdnfs.mirror.contents import Contents
from bdnfs.origins.base import Origin
from bdnfs.origins.ranges import read_range
from bdnfs.session.asking import open_origin_of
from bdnfs.session.interrupts import left_to_trio
from bdnfs.session.mirror import Mirror
from bdnfs.spec.config import Config
from bdnfs.spec.patterns import Patterns
from bdnfs.spec.secret import Secrets
from bdnfs.spec.source import parse_source
from bdnfs.spec.weights import Weights
from bdnfs.volume.records import CHUNK_TYPE, digest_of


def repair(mirror: Mirror, config: Config, damage: Damage, weights: Weights | None, secrets: Secrets) -> None:
    """Make a version whole again. weights: how its source is read, where a spec declares it.

    A damaged chunk alone is brought again; of a damaged chunkmap the file, of a damaged manifest or listing
    whatever of the version is not to be told otherwise. Raises what upstream raises, ChangedError where it
    has other bytes by now, IntegrityError where what came is not what was lost.
    """
    row = damage.row
    if weights is None:
        source = parse_source(row.source)
        if source.scheme == "hf":
            source = msgspec.structs.replace(source, revision=row.branch)
        weights = Weights(source, "", Patterns(*_patterns(row.patterns)))
    origin = open_origin_of(weights, config, secrets)
    try:
        if damage.records or damage.chunkmaps:
            _ingest_again(mirror, config, damage, weights, origin)
        else:
            listing = mirror.versions.listing(row)
            _bring_chunks(mirror.versions.contents(row.namespace), damage, listing, origin)
    finally:
        origin.close()


def _bring_chunks(contents: Contents, damage: Damage, listing: Manifest, origin: Origin) -> None:
    files = {file.path: file for file in listing.files}
    for digest, uses in damage.chunks.items():
        path, number = uses[0]
        data = memoryview(bytearray(len(range(*chunk_range(files[path].size, number)))))
        read_range(origin, listing.revision, files[path], chunk_range(files[path].size, number)[0], data)
        if digest_of(data) != digest:
            raise IntegrityError(
                f"{listing.source}: upstream has other bytes for chunk {number} of {path} than were mirrored; "
                "`bdnfs mirror rm` the version, and mirror its source again"
            )
        contents.store.put(contents.key(digest), data, CHUNK_TYPE, "any")
    contents.store.flush()


def _ingest_again(mirror: Mirror, config: Config, damage: Damage, weights: Weights, origin: Origin) -> None:
    row = damage.row
    contents = mirror.versions.contents(row.namespace)
    wrong = {path for paths in damage.chunkmaps.values() for path in paths}
    try:
        listing = mirror.versions.listing(row)
    except BdnfsError:
        revision = row.revision if weights.source.scheme in ("hf", "bdn") else None
        attempts = config.upstream.attempts
        listing = list_snapshot(
            origin, weights, revision, lambda _: None, attempts=attempts, tenant=config.tenant
        )
        if listing.revision != row.revision:
            raise IntegrityError(
                f"{row.source}: its listing in the mirror is damaged, and upstream is another one by now; "
                f"`bdnfs mirror rm {row.ref}`, and mirror its source again"
            ) from None
        contents.store.delete([mirror.versions.listing_key(row)])
    _bring_chunks(contents, damage, listing, origin)  # written over: another version may need them, too
    contents.store.delete([contents.key(digest) for digest in (*damage.records, *damage.chunkmaps)])
    ingest = mirror.ingest(weights, listing, moved=False)
    ingest.forget(wrong)
    with left_to_trio():
        again = trio.run(ingest_from, ingest, origin, config.upstream, Counters())
    if again.digest != row.digest:
        raise IntegrityError(
            f"{row.source}: was mirrored again as {again.ref}: upstream has other bytes by now than {row.ref} had; "
            f"`bdnfs mirror rm {row.ref}`"
        )


def _patterns(key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the patterns that a version's row names."""
    import json

    allow, ignore = json.loads(key) if key else ([], [])
    return tuple(allow), tuple(ignore)
