"""`bdnfs mirror SPEC`: every source's current revision into the mirror, once. Blocking."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import trio

from bdnfs.core.errors import (
    BdnfsError,
    CredentialsError,
    DeadlineError,
    SpecError,
    UnavailableError,
)
from bdnfs.core.progress import Counters
from bdnfs.delivery.ingest import ingest_from
from bdnfs.delivery.nursery import open_nursery
from bdnfs.delivery.resolve import explain_credentials
from bdnfs.manifest.model import Manifest
from bdnfs.mirror.collecting import collector
from bdnfs.mirror.ingest import Ingest
from bdnfs.mirror.lease import RENEW_S, Holder, Lease, take
from bdnfs.mirror.versions import VersionRow
from bdnfs.origins.base import Origin
from bdnfs.session.asking import check_lock, current_revision, late, open_origin_of, upstream_listing
from bdnfs.session.deadlines import within
from bdnfs.session.interrupts import left_to_trio
from bdnfs.session.mirror import Mirror
from bdnfs.session.options import Options
from bdnfs.spec.config import Config
from bdnfs.spec.secret import Secrets
from bdnfs.spec.weights import Weights

Show = Callable[[Counters], None]
_SHOW_S, _WAIT_S = 0.2, 1.0


class Result(NamedTuple):
    """One source's version. moved_bytes: content that had to be put for it, here and now."""

    row: VersionRow
    moved_bytes: int


def mirror_source(
    mirror: Mirror,
    config: Config,
    weights: Weights,
    options: Options,
    secrets: Secrets,
    show: Show,
    warn: Callable[[str], None],
) -> Result:
    """Bring a source at its current (or locked) revision into the mirror, unless it is there.

    Waits for another process that is at it. Raises what upstream or the mirror raises, DeadlineError
    after options.timeout_s; what was put stays, and the same again goes on from it.
    """
    if options.offline:
        raise SpecError("mirror asks upstream what each source is now; leave --offline away")
    if weights.source.scheme == "bdn":
        return Result(mirror.versions.resolve(weights.source.ref).row, 0)  # it lies there already
    revision = _revision(config, weights, options, secrets, warn)
    moved = not (options.lock and options.lock.revision_of(weights)) or options.refresh
    found = _found(mirror, weights, revision, options, moved=moved) if revision is not None else None
    if found is not None:
        return found
    origin = open_origin_of(weights, config, secrets)
    try:
        listing = upstream_listing(config, weights, revision, origin, options, warn)
        found = _found(mirror, weights, listing.revision, options, moved=moved)
        return found or _ingested(mirror, config, weights, options, origin, listing, show, moved=moved)
    except CredentialsError as error:
        raise explain_credentials(error, weights) from error
    finally:
        origin.close()


def _revision(
    config: Config,
    weights: Weights,
    options: Options,
    secrets: Secrets,
    warn: Callable[[str], None],
) -> str | None:
    def ask() -> str | None:
        return current_revision(weights, config, secrets, options)

    locked = options.lock.revision_of(weights) if options.lock else None
    if options.locked:
        check_lock(weights, locked, ask, warn)
    if weights.source.pinned:
        return weights.source.revision
    try:
        return locked if locked and not options.refresh else ask()
    except UnavailableError as error:
        raise late(error, options) from error


def _found(
    mirror: Mirror, weights: Weights, revision: str, options: Options, *, moved: bool
) -> Result | None:
    """Return the version that is there, now the branch's; None where there is none."""

    def look() -> Result | None:
        row = mirror.find(weights, revision)
        if row is None:
            return None
        mirror.versions.point(mirror.volume(weights), row, weights.source.revision, moved=moved)
        return Result(row, 0)

    return within(options.deadline_s, look, f"asking {mirror.versions.store.name}")


def _ingested(
    mirror: Mirror,
    config: Config,
    weights: Weights,
    options: Options,
    origin: Origin,
    listing: Manifest,
    show: Show,
    *,
    moved: bool,
) -> Result:
    progress = Counters()

    def waiting(holder: Holder) -> bool:
        progress.state = f"waiting for {holder}"
        progress.present_bytes, progress.total_bytes = holder.done, holder.total
        show(progress)
        return options.deadline_s is None or time.monotonic() < options.deadline_s

    key = mirror.lease_key(weights, listing.revision)
    lease = within(
        options.deadline_s,
        lambda: take(mirror.versions.store, key, waiting=waiting),
        f"waiting for who is mirroring {weights.source.text}, or for {mirror.versions.store.name}",
    )
    if lease is None:
        raise DeadlineError(
            f"{weights.source.text}: another process is mirroring it, and was not done after "
            f"{options.timeout_s or 0:g} s; try again later"
        )
    try:
        while (holder := collector(mirror.versions.store, mirror.versions.org)) is not None:
            if not waiting(holder):
                raise DeadlineError(
                    f"{weights.source.text}: {holder} is collecting what the mirror no longer needs, and was not done "
                    f"after {options.timeout_s or 0:g} s; try again later"
                )
            time.sleep(_WAIT_S)
            lease.renew()
        found = _found(mirror, weights, listing.revision, options, moved=moved)
        if found is not None:  # the one that was waited for has done it
            return found
        ingest = mirror.ingest(weights, listing, moved=moved)
        with left_to_trio():
            row = trio.run(_ingest_shown, ingest, lease, origin, config, options, progress, show)
        return Result(row, ingest.moved_bytes)
    finally:
        lease.release()


async def _ingest_shown(
    ingest: Ingest,
    lease: Lease,
    origin: Origin,
    config: Config,
    options: Options,
    progress: Counters,
    show: Show,
) -> VersionRow:
    with trio.move_on_after(options.left_s(math.inf)):
        async with open_nursery() as nursery:
            nursery.start_soon(_show, progress, show)
            nursery.start_soon(_keep, lease, progress)
            row = await ingest_from(ingest, origin, config.upstream, progress)
            nursery.cancel_scope.cancel()
            show(progress)
            return row
    raise DeadlineError(
        f"{ingest.listing.source}: was not all mirrored after {options.timeout_s:g} s; what is there stays: "
        "run the same again to go on"
    )


async def _show(progress: Counters, show: Show) -> None:
    while True:
        show(progress)
        await trio.sleep(_SHOW_S)


async def _keep(lease: Lease, progress: Counters) -> None:
    """Renew the lease, and say in it how far we are; what is lost is done twice, never wrong."""
    while True:
        with contextlib.suppress(BdnfsError):  # the next renewal, or the ingest itself, meets it
            await trio.to_thread.run_sync(
                lease.renew, progress.present_bytes, progress.total_bytes, abandon_on_cancel=True
            )
        if lease.lost:
            progress.warnings.append(
                f"{progress.state}: another process took over meanwhile; the work is done twice"
            )
            return
        await trio.sleep(RENEW_S)
