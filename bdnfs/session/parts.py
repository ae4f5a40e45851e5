"""The parts of a spec, each on its way from a declared source to a snapshot. Blocking, no trio.

For a source whose snapshot is whole this is the whole way: `look` finds its tree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bdnfs.cache.node import NodeCache
from bdnfs.cache.pins import Pin
from bdnfs.core.errors import (
    ChangedError,
    CredentialsError,
    UnavailableError,
    UpstreamError,
)
from bdnfs.delivery.resolve import Admitted, explain_credentials, find_revision, selection_text
from bdnfs.session.asking import (
    Warn,
    check_lock,
    current_revision,
    late,
    mirrored_last,
    open_origin_of,
    source_mirror,
    upstream_listing,
    volume_digests,
)
from bdnfs.session.options import Options
from bdnfs.spec.config import Config
from bdnfs.spec.load import Placed
from bdnfs.spec.secret import Secrets, take_secrets
from bdnfs.spec.weights import Spec, Weights

if TYPE_CHECKING:
    from bdnfs.delivery.mirrored import Mirrored
    from bdnfs.session.mirror import SourceMirror


@dataclass(frozen=True)
class Part:
    """One declared source as far as it is known here.

    revision: immutable; None where only a listing can tell
    tree:     the finished tree, None where bytes are missing
    pin:      forbids eviction; whoever has the part closes it
    """

    placed: Placed
    selection: str
    revision: str | None
    snapshot_id: str | None = None
    tree: Path | None = None
    pin: Pin | None = None

    @property
    def weights(self) -> Weights:
        return self.placed.weights

    def close(self) -> None:
        if self.pin is not None:
            self.pin.close()


def as_written(spec: Spec) -> tuple[Placed, ...]:
    """Return the sources of a spec for what mounts nothing: wherever they would go, nobody asks."""
    return tuple(Placed(weights, weights.mount_location, outside=False) for weights in spec.weights)


def look(
    cache: NodeCache,
    config: Config,
    placed: Sequence[Placed],
    options: Options,
    secrets: Secrets,
    warn: Warn,
) -> list[Part]:
    """Find each source's revision, and its tree where the snapshot is whole."""
    parts: list[Part] = []
    try:
        for item in placed:
            parts.append(_look(cache, config, item, options, secrets, warn))  # noqa: PERF401 - see except
    except BaseException:
        close(parts)
        raise
    return parts


def close(parts: Sequence[Part]) -> None:
    """Let every pin of the parts go."""
    for part in parts:
        part.close()


def read_secrets(placed: Sequence[Placed], config: Config, environment: Mapping[str, str]) -> Secrets:
    """Find every secret the sources and the mirror name; raise CredentialsError for the first that is missing."""
    names = [item.weights.secret_name for item in placed]
    names.append(config.mirror.secret_name if config.mirror else None)
    return take_secrets(config.secrets, filter(None, names), environment)


def _look(
    cache: NodeCache,
    config: Config,
    placed: Placed,
    options: Options,
    secrets: Secrets,
    warn: Warn,
) -> Part:
    weights = placed.weights
    selection = selection_text(weights, config)
    locked = options.lock.revision_of(weights) if options.lock else None

    def ask() -> str | None:
        return current_revision(weights, config, secrets, options)

    def ask_or_mirror() -> str | None:
        try:
            return ask()
        except UnavailableError as error:
            if options.refresh or cache.last_revision(selection, weights.source.revision) is not None:
                raise
            return mirrored_last(config, weights, secrets, warn, error)

    if options.locked:
        check_lock(weights, locked, None if options.offline else ask, warn)
    try:
        found = find_revision(
            cache,
            weights,
            config,
            locked=None if options.refresh else locked,
            offline=options.offline,
            ask=ask_or_mirror,
            fallback=not options.refresh,
        )
    except UnavailableError as error:
        raise late(error, options) from error
    if found.warning:
        warn(found.warning)
    part = part_at(cache, placed, selection, found.revision)
    if part.tree is not None and found.asked and found.revision is not None:
        cache.saw_revision(selection, weights.source.revision, found.revision)
    if found.revision is None and options.fill:
        return _listed(cache, config, part, options, secrets, warn)
    return part


def _listed(
    cache: NodeCache,
    config: Config,
    part: Part,
    options: Options,
    secrets: Secrets,
    warn: Warn,
) -> Part:
    """List a store without revisions, here: only so can a whole snapshot be bound without a daemon."""
    try:
        known, admitted = admit(cache, config, part, options, secrets, warn)
    except UnavailableError as error:
        if options.refresh:
            raise
        last = cache.last_revision(part.selection, part.weights.source.revision)
        if last is None:
            last = mirrored_last(config, part.weights, secrets, warn, error)
        warn(
            f"{part.weights.source.text}: upstream can't be listed ({error}); using what was seen last, {last}"
        )
        return part_at(cache, part.placed, part.selection, last)
    if admitted is not None:
        admitted.close()
    return known


def part_at(cache: NodeCache, placed: Placed, selection: str, revision: str | None) -> Part:
    """Return the part at an immutable revision, pinned, with its tree if the snapshot is whole."""
    snapshot = None if revision is None else cache.snapshot_of(selection, revision)
    if snapshot is None:
        return Part(placed, selection, revision)
    pin = cache.pin(snapshot)
    tree = cache.whole_tree(snapshot)
    if tree is not None:
        cache.used(snapshot)
    return Part(placed, selection, revision, snapshot, tree, pin)


def admit(
    cache: NodeCache,
    config: Config,
    part: Part,
    options: Options,
    secrets: Secrets,
    warn: Warn,
) -> tuple[Part, Admitted | None]:
    """List the part if that is still to do, and make room for it before the first byte.

    Returns the part as it is known now, and with its tree or what is to be filled. Raises
    SpaceError, UpstreamError, CredentialsError, or ChangedError where a locked listing differs.
    """
    if options.offline:
        raise UpstreamError(
            f"{part.weights.source.text}: is not whole on this node, and --offline forbids fetching the rest; "
            "run once without it"
        )
    origin = open_origin_of(part.weights, config, secrets)
    mirror: SourceMirror | None = None
    mirrored: Mirrored | None = None

    def let_go() -> None:
        origin.close()
        if mirrored is not None:
            mirrored.close()
        elif mirror is not None:
            mirror.close()

    try:
        mirror = source_mirror(config, part.weights, secrets, warn)
        record = cache.record(part.snapshot_id) if part.snapshot_id else None
        manifest = record.manifest if record is not None else None
        if mirror is not None and part.revision is not None:
            listing, mirrored = mirror.holding(part.revision)
            manifest = manifest or listing
        if manifest is None:
            manifest = upstream_listing(config, part.weights, part.revision, origin, options, warn)
        if not options.fill and not all(file.ranged for file in manifest.files):
            raise UpstreamError(
                f"{part.weights.source.text}: upstream has no byte ranges, and --no-fill needs them; mount without it"
            )
        snapshot, pin = cache.admit(
            manifest,
            part.selection,
            part.weights.source.revision,
            part.weights.patterns.key,
            window=not options.fill,
        )
        part.close()
        cache.saw_revision(part.selection, part.weights.source.revision, manifest.revision)
        known = replace(part, revision=manifest.revision, snapshot_id=snapshot, pin=pin)
        tree = cache.whole_tree(snapshot)
        if tree is not None:
            let_go()
            return replace(known, tree=tree), None
        if mirror is not None and mirrored is None:
            # A window is never whole: the mirror gets nothing of it, and nobody waits for it.
            mirrored = (
                mirror.taking(manifest, moved=options.lock is None or options.refresh)
                if options.fill
                else mirror.looking(manifest)
            )
        if mirror is not None and mirrored is None:
            mirror.close()
        found = cache.record(snapshot)
        if found is None:
            raise ChangedError(
                f"{part.weights.source.text}: its record was damaged while being read; try again"
            )
        volume = None if config.cluster is None else volume_digests(origin, manifest.revision)
        return known, Admitted(snapshot, found, pin, origin, mirrored, volume)
    except CredentialsError as error:
        let_go()
        raise explain_credentials(error, part.weights) from error
    except BaseException:
        let_go()
        raise
