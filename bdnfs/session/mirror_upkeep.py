"""Looking after the mirror: what is in it, whether that is whole, and what goes. Blocking."""

import time
from collections.abc import Callable, Iterable

from bdnfs.cache.node import NodeCache
from bdnfs.cache.share import drop_share
from bdnfs.core.errors import BdnfsError, IntegrityError, MountError, NotFoundError, UnavailableError
from bdnfs.core.progress import Counters
from bdnfs.mirror.checking import Checker, Damage
from bdnfs.mirror.collecting import Collected, collect, gc_lease_key, purge
from bdnfs.mirror.lease import take
from bdnfs.mirror.mending import Torn, mend, torn
from bdnfs.mirror.versions import VersionRow
from bdnfs.session.mirror import TENANT, Mirror
from bdnfs.session.mirror_repair import repair
from bdnfs.spec.config import Config
from bdnfs.spec.secret import Secrets
from bdnfs.spec.volume import VolumeRef, parse_ref
from bdnfs.spec.weights import Weights


def chosen(mirror: Mirror, refs: Iterable[str]) -> list[VersionRow]:
    """Return the versions that refs name, oldest first; all of a bare volume's; without refs all there are."""
    wanted = [parse_ref(ref) for ref in refs]
    if not wanted:
        return _in_order(mirror.versions.all())
    found = [row for ref in wanted for row in _of(mirror, ref)]
    return _in_order({(row.namespace, row.volume, row.digest): row for row in found}.values())


def _of(mirror: Mirror, ref: VolumeRef) -> list[VersionRow]:
    if ref.tag or ref.digest:
        return [mirror.versions.resolve(ref).row]
    rows = list(mirror.versions.all(ref.namespace, ref.volume))
    if not rows:
        raise NotFoundError(
            f"{ref}: {mirror.versions.store.name} has no version of it; `bdnfs mirror ls` lists what is there"
        )
    return rows


def _in_order(rows: Iterable[VersionRow]) -> list[VersionRow]:
    return sorted(rows, key=lambda row: (row.namespace, row.volume, row.sequence))


def verify(mirror: Mirror, rows: list[VersionRow], show: Callable[[Counters], None]) -> list[Damage]:
    """Read everything that the versions name; return those that are damaged, and how."""
    counted = Counters(
        "checking", total_bytes=sum(row.size for row in rows), files=sum(row.files for row in rows)
    )

    def checked(size: int) -> None:
        counted.present_bytes += size
        show(counted)

    checker, found = Checker(mirror.versions, checked), []
    for row in rows:
        damage = checker.check(row)
        if damage:
            counted.warnings += damage.said
            found.append(damage)
        counted.files_whole += row.files
        show(counted)
    return found


def repaired(
    mirror: Mirror,
    config: Config,
    damages: list[Damage],
    weights: Iterable[Weights],
    secrets: Secrets,
    say: Callable[[str], None],
) -> list[Damage]:
    """Repair each damaged version; return what could not be, having said why."""
    declared = {mirror.volume(each): each for each in weights}
    left = []
    for damage in damages:
        volume = damage.row.ref._replace(digest=None)
        try:
            repair(mirror, config, damage, declared.get(volume), secrets)
        except BdnfsError as error:
            say(f"{damage.row.ref}: can't be repaired: {error}")
            left.append(damage)
    return left


def remove(mirror: Mirror, rows: Iterable[VersionRow]) -> None:
    """Forget versions; `gc` takes what only they named."""
    for row in rows:
        mirror.versions.remove(row)


def gc(mirror: Mirror, grace_s: float, *, dry_run: bool, deadline_s: float | None) -> Collected:
    """Delete what no version names and is older than the grace period."""
    versions = mirror.versions

    def waiting(_: object) -> bool:
        return deadline_s is None or time.monotonic() < deadline_s

    lease = take(versions.store, gc_lease_key(versions.org), waiting=waiting)
    if lease is None:
        raise UnavailableError(
            f"{versions.store.name}: another process is collecting; try again when it is done"
        )
    try:
        namespaces = {row.namespace for row in versions.all()} | {mirror.namespace}
        return collect(versions, namespaces, grace_s, dry_run=dry_run, alive=lease.renew_in_time)
    finally:
        lease.release()


def evict_tenant(cache: NodeCache, tenant: str) -> int:
    """Evict all that the node has of a tenant, pins by date included; return the bytes freed.

    Raises MountError, having evicted nothing, while something of it is mounted or in use.
    """
    names = {tenant, ""} if tenant == TENANT else {tenant}
    held = [item for item in cache.holdings() if item.row.tenant in names]
    for item in held:
        if item.row.pinned_until_s:
            cache.pin_until(item.snapshot_id, 0.0)
    used = [item for item in cache.holdings() if item.row.tenant in names and item.pinned]
    if used:
        raise MountError(
            f"the tenant {tenant}: {used[0].row.source} is {used[0].pinned} on this node; unmount it first. "
            "Nothing was purged"
        )
    # A node that runs here finds them gone as it looks.
    return drop_share(cache.layout, tenant) + sum(
        cache.evict(unused_since_s=time.time() + 1, dry_run=False, tenant=name).freed_bytes
        for name in sorted(names)
    )


def purge_mirror(mirror: Mirror, tenant: str) -> int:
    """Delete everything of a tenant in the mirror; return how many objects that were."""
    return purge(mirror.versions.store, tenant)


def damaged_error(mirror: Mirror, damages: list[Damage], names: list[Torn], versions: int) -> IntegrityError:
    """Return what `verify` ends with: which versions, and which names of versions, are not whole."""
    what = [str(damage.row.ref) for damage in damages] + [name.key for name in names]
    return IntegrityError(
        f"{mirror.versions.store.name}: {len(damages)} of {versions} versions and {len(names)} names are damaged "
        f"({', '.join(what[:3])}); `bdnfs mirror verify --repair` brings what is wrong from upstream again"
    )


__all__ = [
    "chosen",
    "damaged_error",
    "evict_tenant",
    "gc",
    "mend",
    "purge_mirror",
    "remove",
    "repaired",
    "torn",
    "verify",
]
