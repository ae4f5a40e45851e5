"""From a declared source to an immutable manifest. Blocking; the hit path ends at `find_revision`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from bdnfs.cache.node import NodeCache
from bdnfs.cache.pins import Pin
from bdnfs.cache.rows import Record
from bdnfs.core.backoff import RETRY_AFTER_MAX_S, pause_s
from bdnfs.core.errors import CredentialsError, UnavailableError, UpstreamError
from bdnfs.core.steps import reach
from bdnfs.core.units import SIZE_BYTES_MAX
from bdnfs.manifest.model import FileEntry, Manifest
from bdnfs.manifest.paths import check_path, check_tree
from bdnfs.spec.config import Config
from bdnfs.spec.patterns import no_match_message, warnings
from bdnfs.spec.weights import Weights

if TYPE_CHECKING:
    from bdnfs.delivery.mirrored import Mirrored
    from bdnfs.mirror.digests import Digests
    from bdnfs.origins.base import Origin

T = TypeVar("T")

_SAMPLE_NAMES = 5


class Found(NamedTuple):
    """Which immutable revision a source is at.

    asked:   upstream said so just now
    warning: why it may be an older one
    """

    revision: str | None
    asked: bool = False
    warning: str | None = None


@dataclass(frozen=True)
class Admitted:
    """A snapshot that has its room and its pin, and where its missing bytes come from.

    mirrored: what the mirror does for it, None without one
    volume:   digests of the chunks of a source that lies in the mirror itself, None of others
    """

    snapshot_id: str
    record: Record
    pin: Pin
    origin: "Origin"
    mirrored: "Mirrored | None" = None
    volume: "Digests | None" = None

    @property
    def digests(self) -> "Digests | None":
        """By which the mirror and the peers have its chunks; None where nobody but upstream has any."""
        return self.volume if self.mirrored is None else self.mirrored.digests

    def close(self) -> None:
        """Let origin and mirror go; the pin goes with the delivery."""
        self.origin.close()
        if self.mirrored is not None:
            self.mirrored.close()


def selection_text(weights: Weights, config: Config) -> str:
    """Return what tells one selection of files from another: source, endpoint, patterns, and whose it is."""
    endpoint = config.upstream.hf_endpoint if weights.source.scheme == "hf" else ""
    if weights.source.scheme == "bdn" and config.mirror is not None:
        endpoint = config.mirror.url
    tenant = f"\0{config.tenant}" if config.tenant else ""
    return f"{weights.source.key}\0{endpoint}\0{weights.patterns.key}{tenant}"


def retried(ask: Callable[[], T], attempts: int) -> T:
    """Return what ask returns, asking up to attempts times while upstream is unavailable.

    Waits as upstream says (Retry-After), up to RETRY_AFTER_MAX_S; raises the last UnavailableError.
    """
    for attempt in range(1, attempts):
        try:
            return ask()
        except UnavailableError as error:
            if (error.retry_after_s or 0) > RETRY_AFTER_MAX_S:
                raise
            time.sleep(max(pause_s(attempt), error.retry_after_s or 0))
    return ask()


def find_revision(
    cache: NodeCache,
    weights: Weights,
    config: Config,
    *,
    locked: str | None,
    offline: bool,
    ask: Callable[[], str | None],
    fallback: bool,
) -> Found:
    """Name the immutable revision to use; revision is None where only a listing can tell.

    Asks upstream nothing for a pinned or locked source, at most once for a branch. When upstream
    can't be reached, the revision last seen serves (with fallback), and a warning says so. Raises UnavailableError or
    UpstreamError where nothing was ever seen.
    """
    source, selection = weights.source, selection_text(weights, config)
    if locked is not None:
        return Found(locked)
    if source.pinned:
        return Found(source.revision)
    last = cache.last_revision(selection, source.revision)
    if offline:
        if last is None:
            raise UpstreamError(
                f"{source.text}: was never resolved on this node, and --offline forbids asking upstream; "
                "run once without it"
            )
        return Found(last)
    try:
        # With something to fall back on, a mount need not wait for an upstream that is away.
        patient = last is None or not fallback
        return Found(retried(ask, config.upstream.attempts) if patient else ask(), asked=True)
    except UnavailableError as error:
        if last is None or not fallback:
            raise
        return Found(
            last,
            warning=f"{source.text}: upstream can't be asked ({error}); using what it was last seen at, {last}",
        )


def list_snapshot(
    origin: "Origin",
    weights: Weights,
    revision: str | None,
    warn: Callable[[str], None],
    *,
    attempts: int = 5,
    tenant: str | None = None,
) -> Manifest:
    """List the source, choose by its patterns, check every name; return the manifest, a tenant's own.

    Raises UpstreamError where a name is not safe or nothing is left, CredentialsError,
    NotFoundError or UnavailableError from upstream.
    """
    where = weights.source.text
    listed = retried(lambda: list(origin.list(revision)), attempts)
    kept = [file for file in listed if weights.patterns.match(file.path)]
    if not kept:
        raise UpstreamError(
            no_match_message(
                where, weights.patterns, len(listed), [file.path for file in listed[:_SAMPLE_NAMES]]
            )
        )
    for file in kept:
        check_path(file.path, where)
        if file.size < 0:
            raise UpstreamError(
                f"{where}: upstream lists {file.path!r} with {file.size} bytes; nothing was fetched"
            )
    if sum(file.size for file in kept) >= SIZE_BYTES_MAX:
        raise UpstreamError(
            f"{where}: upstream lists more bytes than any disk holds; nothing was fetched. Leave the files that "
            "lie about their size out with ignore_patterns"
        )
    check_tree((file.path for file in kept), where)
    for line in warnings(weights.patterns, [file.path for file in listed], [file.path for file in kept]):
        warn(f"{where}: {line}")
    kept.sort(key=lambda file: file.path)
    reach("resolve:listed")
    revision = revision or _listing_revision(kept)
    return Manifest(weights.source.key, origin.name, revision, tuple(kept), tenant or "")


def _listing_revision(files: list[FileEntry]) -> str:
    """Name a listing of a store that has no revisions by what is in it."""
    from blake3 import blake3

    found = blake3()
    for file in files:
        found.update(f"{file.path}\0{file.size}\0{file.identity}\0{file.digest}\n".encode())
    return f"listing-{found.hexdigest(20)}"


def explain_credentials(error: CredentialsError, weights: Weights) -> CredentialsError:
    """Say which secret was used, for a refusal that only knows its URL."""
    if weights.secret_name is None or repr(weights.secret_name) in str(error):
        return error
    return CredentialsError(f"{error} (the secret {weights.secret_name!r} was used)")
