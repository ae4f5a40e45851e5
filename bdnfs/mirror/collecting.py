"""`mirror gc` and `purge`: what no version names goes, once it is older than a grace period; or all of a tenant.

An ingest may just have found an object it needs. So the two exclude each other by leases: gc does not
begin while an ingest is under way, and an ingest waits for a gc to end. The grace period is for what
a lease can't tell of: an ingest that lost its own.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from bdnfs.core.errors import IntegrityError, NotFoundError, UnavailableError
from bdnfs.core.units import format_duration
from bdnfs.mirror.held import HeldFiles
from bdnfs.mirror.lease import Holder, is_live, read
from bdnfs.mirror.mending import check_names
from bdnfs.mirror.store import Store
from bdnfs.mirror.versions import Versions

GRACE_S = 86400.0
_DELETES_AT_ONCE = 1000


@dataclass
class Collected:
    """What went, or would go. objects, size_bytes: of the content; kept: unreferenced, but younger than the grace."""

    objects: int = 0
    size_bytes: int = 0
    kept: int = 0


def gc_lease_key(org: str) -> str:
    return f"leases/{org}/gc.json"


def collector(store: Store, org: str) -> Holder | None:
    """Return who is collecting, for an ingest that holds its own lease by now: each sees the other's."""
    held = read(store, gc_lease_key(org))
    return held[0] if held is not None and is_live(held[0]) else None


def collect(
    versions: Versions,
    namespaces: Iterable[str],
    grace_s: float,
    *,
    dry_run: bool,
    alive: Callable[[], None],
) -> Collected:
    """Delete what no version names and is older than grace_s; the caller holds the gc lease.

    alive: called all the time, to renew it

    Raises UnavailableError while an ingest is under way, IntegrityError where a damaged version
    hides what it needs.
    """
    _check_no_ingest(versions.store, versions.org)
    check_names(versions)
    done = Collected()
    for namespace in sorted(set(namespaces)):
        live, listings = _live(versions, namespace, alive)
        before_s = time.time() - grace_s
        held = HeldFiles(versions.store, versions.org, namespace)
        # Who remembers a file goes before the file.
        forgotten = (key for key in held.unused(live) if not dry_run)
        old = _old(versions.store, versions, namespace, listings, before_s, dry_run=dry_run)
        unused = _unused(versions, namespace, live, before_s, done, dry_run=dry_run)
        for keys in (forgotten, old, unused):
            _delete(versions.store, keys, alive)
    return done


def everything(store: Store, org: str) -> Iterator[str]:
    """Yield the key of everything a tenant has, versions first: what is half gone names nothing."""
    for place in ("volumes", "files", "bdn", "leases"):
        for found in store.list(f"{place}/{org}/"):
            yield found.key


def purge(store: Store, org: str) -> int:
    """Delete everything of a tenant; return how many objects that were.

    Raises UnavailableError while an ingest is under way: it would publish what is gone.
    """
    _check_no_ingest(store, org)
    return _delete(store, everything(store, org))


def _check_no_ingest(store: Store, org: str) -> None:
    for found in store.list(f"leases/{org}/"):
        held = read(store, found.key) if found.key != gc_lease_key(org) else None
        if held is not None and is_live(held[0]):
            raise UnavailableError(
                f"{store.name}: {_who(held[0])} is mirroring into it right now; try again when that is done"
            )


def _who(holder: Holder) -> str:
    return f"{holder} (seen {format_duration(max(0.0, time.time() - holder.renewed_s))} ago)"


def _live(versions: Versions, namespace: str, alive: Callable[[], None]) -> tuple[set[str], set[str]]:
    """Return the digests of all objects that versions need, and of their listings."""
    contents = versions.contents(namespace)
    live, listings = set[str](), set[str]()
    for row in versions.all(namespace):
        alive()
        live.add(row.digest)
        listings.add(row.listing)
        try:
            for file in contents.manifest(row.digest).files:
                if file.chunk is not None:
                    live.add(file.chunk)
                elif file.chunkmap is not None and file.chunkmap not in live:
                    live.add(file.chunkmap)
                    live.update(chunk.digest for chunk in contents.chunkmap(file.chunkmap, file.size))
        except (IntegrityError, NotFoundError) as error:
            raise IntegrityError(f"{error}. Nothing was collected: what it needs can't be told") from None
    return live, listings


def _unused(
    versions: Versions, namespace: str, live: set[str], before_s: float, done: Collected, *, dry_run: bool
) -> Iterator[str]:
    for found in versions.store.list(f"bdn/{versions.org}/{namespace}/objects/b3/"):
        if f"b3:{found.key.rpartition('/')[2]}" in live:
            continue
        if found.modified_s >= before_s:
            done.kept += 1
            continue
        done.objects += 1
        done.size_bytes += found.size
        if not dry_run:
            yield found.key


def _old(
    store: Store, versions: Versions, namespace: str, listings: set[str], before_s: float, *, dry_run: bool
) -> Iterator[str]:
    """Yield listings whose version was never published."""
    for found in store.list(f"volumes/{versions.org}/{namespace}/"):
        place, _, name = found.key.rpartition("/")
        unused = place.endswith("/listings") and f"b3:{name.removesuffix('.json')}" not in listings
        if unused and found.modified_s < before_s and not dry_run:
            yield found.key


def _delete(store: Store, keys: Iterator[str], alive: Callable[[], None] = lambda: None) -> int:
    count = 0
    while batch := list(islice(keys, _DELETES_AT_ONCE)):
        store.delete(batch)
        alive()
        count += len(batch)
    return count
