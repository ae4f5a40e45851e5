"""What a source is now: upstream is asked, or the mirror in its place. Blocking, no trio."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from bdnfs.core.errors import (
    BdnfsError,
    ChangedError,
    CredentialsError,
    DeadlineError,
    SpecError,
    UnavailableError,
)
from bdnfs.delivery.resolve import explain_credentials, list_snapshot
from bdnfs.manifest.model import Manifest
from bdnfs.session.deadlines import within
from bdnfs.session.options import Options
from bdnfs.spec.config import Config
from bdnfs.spec.load import Placed
from bdnfs.spec.secret import Secrets, plain_token
from bdnfs.spec.weights import Weights

if TYPE_CHECKING:
    from bdnfs.mirror.digests import Digests
    from bdnfs.origins.base import Origin
    from bdnfs.session.mirror import SourceMirror

Warn = Callable[[str], None]

# The longest wait for upstream to say what a branch is now.
ASK_S = 10.0


def current_revision(weights: Weights, config: Config, secrets: Secrets, options: Options) -> str | None:
    """Ask upstream, once, what the source's branch is now; None where only a listing can tell."""
    if weights.source.scheme == "bdn":
        from bdnfs.session.mirror import volume_revision

        return volume_revision(weights, config, secrets)
    if weights.source.scheme != "hf":
        return None
    from bdnfs.origins.hub_revision import branch_commit

    upstream = config.upstream
    source, name = weights.source, weights.secret_name
    token = upstream.hf_token.value if upstream.hf_token else None
    if name is not None:
        token = plain_token(f"source {source.key}: the secret {name!r}", secrets.read(name))
    try:
        return branch_commit(
            upstream.hf_endpoint,
            source.rest,
            source.kind,
            source.revision,
            token,
            timeout_s=max(options.left_s(ASK_S), 0.001),
            proxies=upstream.proxies,
            ca_bundle=upstream.ca_bundle,
        )
    except CredentialsError as error:
        raise explain_credentials(error, weights) from error


def late(error: UnavailableError, options: Options) -> BdnfsError:
    """Return what it was that kept upstream from answering: itself, or --timeout."""
    if options.deadline_s is None or time.monotonic() < options.deadline_s:
        return error
    return DeadlineError(f"{error} (--timeout was {options.timeout_s:g} s)")


def check_lock(
    weights: Weights, locked: str | None, ask: Callable[[], str | None] | None, warn: Warn
) -> None:
    """Raise SpecError where the lock says nothing of the source, ChangedError where its branch moved.

    ask: None where upstream may not be asked; where it can't, a warning has to do.
    """
    if locked is None:
        raise SpecError(
            f"{weights.source.text}: is not in spec.lock, and --locked asks for it; run `bdnfs lock`"
        )
    if weights.source.pinned or ask is None:
        return
    try:
        current = ask()
    except UnavailableError as error:
        warn(
            f"{weights.source.text}: whether it has moved on can't be asked ({error}); using {locked}, as locked"
        )
        return
    if current is not None and current != locked:
        raise ChangedError(
            f"{weights.source.text}: is locked to {locked}, but {weights.source.revision or 'its default branch'} is "
            f"now at {current}. Run `bdnfs lock` to take the new one, or leave --locked away to use the locked one"
        )


def mirrored_last(config: Config, weights: Weights, secrets: Secrets, warn: Warn, error: BdnfsError) -> str:
    """Return the revision that was mirrored last, for an upstream that is away; raise its error without one."""
    if config.mirror is None or weights.source.scheme == "bdn":
        raise error
    from bdnfs.session.mirror import open_mirror

    mirror = open_mirror(config, secrets)
    assert mirror is not None
    try:
        row = mirror.last(weights)
    except BdnfsError as second:
        warn(f"{weights.source.text}: the mirror can't be asked either: {second}")
        row = None
    finally:
        mirror.close()
    if row is None:
        raise error
    warn(
        f"{weights.source.text}: upstream can't be asked ({error}); using what was mirrored last, {row.revision}"
    )
    return row.revision


def source_mirror(config: Config, weights: Weights, secrets: Secrets, warn: Warn) -> "SourceMirror | None":
    """Return what the mirror is to a source: nothing where there is none, or where the source lies in it."""
    if config.mirror is None or weights.source.scheme == "bdn":
        return None
    from bdnfs.session.mirror import mirror_of

    return mirror_of(config, weights, secrets, warn)


def open_origin_of(weights: Weights, config: Config, secrets: Secrets) -> "Origin":
    if weights.source.scheme == "bdn":
        from bdnfs.session.mirror import volume_origin

        return volume_origin(weights, config, secrets)
    from bdnfs.origins.registry import open_origin

    return open_origin(weights.source, config.upstream, weights.auth, secrets)


def volume_digests(origin: "Origin", revision: str) -> "Digests | None":
    """Return the digests of the chunks of a source that lies in the mirror; None for others, or where it is away."""
    from bdnfs.mirror.origin import VolumeOrigin

    if not isinstance(origin, VolumeOrigin):
        return None
    with suppress(BdnfsError):
        return origin.digests(revision)
    return None


def upstream_listing(
    config: Config, weights: Weights, revision: str | None, origin: "Origin", options: Options, warn: Warn
) -> Manifest:
    """List a source at an immutable revision; raise ChangedError where a store without revisions has moved on."""
    has_revisions = weights.source.scheme in ("hf", "bdn")
    manifest = within(
        options.deadline_s,
        lambda: list_snapshot(
            origin,
            weights,
            revision if has_revisions else None,
            warn,
            attempts=config.upstream.attempts,
            tenant=config.tenant,
        ),
        f"listing {weights.source.text}",
    )
    if revision is not None and manifest.revision != revision:
        raise ChangedError(
            f"{weights.source.text}: is locked to {revision}, but upstream now lists {manifest.revision}; "
            "run `bdnfs lock` to take the new one"
        )
    return manifest


def resolve_revisions(
    config: Config, placed: Sequence[Placed], options: Options, secrets: Secrets, warn: Warn
) -> list[tuple[Weights, str]]:
    """Ask upstream what each source is now, without touching the cache: for `bdnfs lock`."""
    return [(item.weights, _resolved(config, item.weights, options, secrets, warn)) for item in placed]


def _resolved(config: Config, weights: Weights, options: Options, secrets: Secrets, warn: Warn) -> str:
    if weights.source.pinned and weights.source.revision is not None:
        return weights.source.revision
    try:
        revision = current_revision(weights, config, secrets, options)
    except UnavailableError as error:
        raise late(error, options) from error
    if revision is not None:
        return revision
    origin = open_origin_of(weights, config, secrets)
    try:
        return within(
            options.deadline_s,
            lambda: list_snapshot(origin, weights, None, warn, attempts=config.upstream.attempts).revision,
            f"listing {weights.source.text}",
        )
    finally:
        origin.close()
