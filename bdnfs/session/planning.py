"""`plan`: what would be fetched, from where, in how long. Writes nothing."""

import time
from collections.abc import Sequence

import msgspec

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import BdnfsError, UnavailableError, UpstreamError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.delivery.mirrored import Mirrored
from bdnfs.delivery.resolve import list_snapshot, selection_text
from bdnfs.manifest.model import Manifest
from bdnfs.origins.base import Origin
from bdnfs.session.asking import (
    Warn,
    check_lock,
    current_revision,
    late,
    mirrored_last,
    open_origin_of,
    source_mirror,
)
from bdnfs.session.deadlines import within
from bdnfs.session.options import Options
from bdnfs.spec.config import Config
from bdnfs.spec.load import Placed
from bdnfs.spec.secret import Secrets
from bdnfs.tiers.origin import MIRROR, ORIGIN, PEER


class PlannedSource(msgspec.Struct, frozen=True):
    """One source: bytes on the node, bytes still to come by tier, and the time that should take.

    seconds: None where there is nothing to judge by
    """

    source: str
    revision: str
    location: str
    files: int
    total_bytes: int
    present_bytes: int
    tier_bytes: dict[str, int]
    seconds: float | None


def plan(
    cache: NodeCache | None,
    config: Config,
    placed: Sequence[Placed],
    options: Options,
    secrets: Secrets,
    warn: Warn,
) -> list[PlannedSource]:
    """Say for each source what a mount would fetch; the rate is a sample of at most one chunk."""
    return [_plan(cache, config, item, options, secrets, warn) for item in placed]


def _plan(
    cache: NodeCache | None,
    config: Config,
    placed: Placed,
    options: Options,
    secrets: Secrets,
    warn: Warn,
) -> PlannedSource:
    weights, upstream = placed.weights, config.upstream
    selection = selection_text(weights, config)
    locked = options.lock.revision_of(weights) if options.lock else None
    if options.locked:
        check_lock(
            weights,
            locked,
            None if options.offline else lambda: current_revision(weights, config, secrets, options),
            warn,
        )
    revision = None if options.refresh else locked
    if revision is None and weights.source.pinned:
        revision = weights.source.revision
    if revision is None and options.offline and cache is not None:
        revision = cache.last_revision(selection, weights.source.revision)
    if revision is None and not options.offline:
        try:
            revision = current_revision(weights, config, secrets, options)
        except UnavailableError as error:
            revision = mirrored_last(config, weights, secrets, warn, late(error, options))
    manifest = _known(cache, selection, revision)
    mirror = source_mirror(config, weights, secrets, warn) if not options.offline else None
    mirrored = None
    if mirror is not None and revision is not None:
        listing, mirrored = mirror.holding(revision)
        manifest = manifest or listing
    if manifest is None and options.offline:
        raise UpstreamError(
            f"{weights.source.text}: was never listed on this node, and --offline forbids asking upstream; "
            "run once without it"
        )
    origin = open_origin_of(weights, config, secrets)
    try:
        if manifest is None:
            manifest = within(
                options.deadline_s,
                lambda: list_snapshot(
                    origin, weights, revision, warn, attempts=upstream.attempts, tenant=config.tenant
                ),
                f"listing {weights.source.text}",
            )
        if mirror is not None and mirrored is None:
            mirrored = mirror.looking(manifest)
        missing = _missing_bytes(cache, manifest)
        from_mirror = _missing_bytes(cache, _held(manifest, mirrored))
        listed, sample = manifest, mirrored if from_mirror else None
        seconds = (
            None
            if options.offline
            else within(
                options.deadline_s,
                lambda: _seconds(origin, sample, listed, missing),
                f"reading a sample of {weights.source.text}",
            )
        )
    finally:
        origin.close()
    # What the mirror holds comes by way of the peers, where there are any.
    mirror_tier = PEER if missing and not options.offline and _has_peers(config) else MIRROR
    upstream_tier = mirror_tier if weights.source.scheme == "bdn" else ORIGIN
    return PlannedSource(
        source=weights.source.text,
        revision=manifest.revision,
        location=placed.location,
        files=len(manifest.files),
        total_bytes=manifest.total_bytes,
        present_bytes=manifest.total_bytes - missing,
        tier_bytes={
            tier: size
            for tier, size in ((mirror_tier, from_mirror), (upstream_tier, missing - from_mirror))
            if size
        },
        seconds=seconds,
    )


def _has_peers(config: Config) -> bool:
    """Say whether this machine's node answers, with members that own chunks."""
    if config.cluster is None:
        return False
    from bdnfs.cluster.access import open_access
    from bdnfs.cluster.client import local_client

    client = local_client(config.cluster, open_access(config.cluster))
    try:
        return any(member.share_bytes != 0 for member in client.status().members)
    except BdnfsError:
        return False
    finally:
        client.close()


def _known(cache: NodeCache | None, selection: str, revision: str | None) -> Manifest | None:
    if cache is None or revision is None:
        return None
    snapshot = cache.snapshot_of(selection, revision)
    record = cache.record(snapshot) if snapshot else None
    return record.manifest if record else None


def _missing_bytes(cache: NodeCache | None, manifest: Manifest) -> int:
    if cache is None:
        return manifest.total_bytes
    return manifest.total_bytes - cache.present_of(manifest)


def _held(manifest: Manifest, mirrored: Mirrored | None) -> Manifest:
    """Return what of a manifest the mirror gives."""
    files = tuple(file for file in manifest.files if mirrored is not None and mirrored.digests.holds(file))
    return msgspec.structs.replace(manifest, files=files)


def _seconds(
    origin: Origin, mirrored: Mirrored | None, manifest: Manifest, missing_bytes: int
) -> float | None:
    """Judge from one chunk over one connection; several are faster, so this is the slow end."""
    if missing_bytes == 0:
        return 0.0
    files = manifest.files if mirrored is None else _held(manifest, mirrored).files
    largest = max(files, key=lambda file: file.size)
    if not largest.ranged or largest.size == 0:
        return None
    sample = memoryview(bytearray(min(CHUNK_BYTES, largest.size)))
    began_s = time.monotonic()
    if mirrored is not None and mirrored.digests.holds(largest):
        mirrored.digests.fill(largest, 0, sample)
    else:
        origin.read(manifest.revision, largest, 0, sample)
    took_s = max(time.monotonic() - began_s, 1e-6)
    return missing_bytes / (len(sample) / took_s)
