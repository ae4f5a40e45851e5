"""The mirror that this node's config names, as sources see it. Blocking, no trio; never on the way of a hit."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from bdnfs.core.errors import BdnfsError, SpecError
from bdnfs.delivery.mirrored import SHOWN_S, Mirrored, Taken, Turn
from bdnfs.delivery.resolve import selection_text
from bdnfs.manifest.model import Manifest
from bdnfs.mirror.collecting import collector
from bdnfs.mirror.digests import Digests
from bdnfs.mirror.held import HeldFile
from bdnfs.mirror.ingest import Ingest
from bdnfs.mirror.lease import RENEW_S, Holder, take
from bdnfs.mirror.opening import open_store
from bdnfs.mirror.origin import VolumeOrigin
from bdnfs.mirror.versions import VersionRow, Versions
from bdnfs.origins.credentials import Named
from bdnfs.session.deadlines import within
from bdnfs.spec.config import Config
from bdnfs.spec.secret import Secrets
from bdnfs.spec.volume import VolumeRef
from bdnfs.spec.weights import Weights
from bdnfs.volume.names import volume_of

# The org part of a key where the config names no tenant.
TENANT = "default"
# The longest wait for its first answer: there is upstream, too.
_FIND_S = 10.0
_WAIT_S = 1.0
# Who holds a lease and gets no further for so long (upstream is away from it, or its disk is full) is not waited for.
_STALL_S = 300.0


class _Stall:
    """How long who is waited for has got no further."""

    def __init__(self) -> None:
        self._seen: tuple[str, int] = ("", 0)
        self._since_s = time.monotonic()

    def is_long(self, holder: Holder) -> bool:
        seen = (holder.id, holder.done)
        if seen != self._seen:
            self._seen, self._since_s = seen, time.monotonic()
        return time.monotonic() - self._since_s >= _STALL_S


@dataclass(frozen=True)
class Mirror:
    """An open mirror, and the namespace that sources' volumes are in."""

    versions: Versions
    namespace: str
    config: Config

    def volume(self, weights: Weights) -> VolumeRef:
        """Return the volume that a source is."""
        return volume_of(weights.source.key, selection_text(weights, self.config), self.namespace)

    def find(self, weights: Weights, revision: str) -> VersionRow | None:
        """Return the version that a source's revision is, or None."""
        return self.versions.find(self.volume(weights), revision)

    def last(self, weights: Weights) -> VersionRow | None:
        """Return the version that a source's branch was mirrored at last, or None."""
        return self.versions.last(self.volume(weights), weights.source.revision)

    def holding(self, row: VersionRow) -> tuple[Manifest, Mirrored]:
        """Return upstream's listing of a version, and the mirror's part in filling it: all of it."""
        files = self.files(row)
        listing = self.versions.listing(row)
        return listing, Mirrored(Digests(self.versions.contents(row.namespace), files))

    def files(self, row: VersionRow) -> dict[str, HeldFile]:
        """Return the files of a version by their path."""
        manifest = self.versions.manifest(row)
        return {file.path: HeldFile(file.size, file.chunk, file.chunkmap) for file in manifest.files}

    def taking(self, weights: Weights, listing: Manifest, *, moved: bool) -> Mirrored:
        """Return the mirror's part in filling what it lacks: it gives what it has, and takes the rest.

        Where another process is at it, or a `gc` is: in a cluster our turn is to be waited for, else the mirror takes
        nothing. Nor does it where it can't be written to.
        """
        store, key = self.versions.store, self.lease_key(weights, listing.revision)
        lease, turn = None, None
        with suppress(BdnfsError):
            lease = take(store, key, waiting=lambda _: False)
            if lease is None:
                turn = self._turn(weights, listing, moved=moved)
        try:
            if lease is not None and collector(store, self.versions.org) is not None:
                lease.release()
                lease, turn = None, self._turn(weights, listing, moved=moved)
            ingest = self.ingest(weights, listing, moved=moved)
            digests = Digests(ingest.contents, ingest.look())
        except BaseException:
            if lease is not None:
                lease.release()
            raise
        renew_s = SHOWN_S if self.config.cluster is not None else RENEW_S
        return Mirrored(digests, ingest if lease else None, lease, turn, renew_s)

    def _turn(self, weights: Weights, listing: Manifest, *, moved: bool) -> Turn | None:
        """Return how to wait for our turn to take a listing in; None outside of a cluster, where nobody waits."""
        if self.config.cluster is None:
            return None

        def turn(goes_on: Callable[[Holder], bool]) -> Taken:
            return self._taken(weights, listing, goes_on, moved=moved)

        return turn

    def _taken(
        self, weights: Weights, listing: Manifest, goes_on: Callable[[Holder], bool], *, moved: bool
    ) -> Taken:
        """Wait until the version is there, or the lease is ours; not for who does not get on."""
        store, found = self.versions.store, list[VersionRow]()
        stall = _Stall()

        def waiting(holder: Holder) -> bool:
            row = self.find(weights, listing.revision)
            if row is not None:
                found.append(row)
            return row is None and not stall.is_long(holder) and goes_on(holder)

        lease = take(store, self.lease_key(weights, listing.revision), waiting=waiting)
        try:
            while lease is not None and (holder := collector(store, self.versions.org)) is not None:
                if not waiting(holder):
                    lease.release()
                    lease = None
                    break
                time.sleep(_WAIT_S)
                lease.renew_in_time()
            row = found[0] if found else self.find(weights, listing.revision)
            if row is not None:  # the one that was waited for has done it
                if lease is not None:
                    lease.release()
                return Taken(self.files(row))
            ingest = self.ingest(weights, listing, moved=moved)
            return Taken(ingest.look(), ingest if lease else None, lease)
        except BaseException:
            if lease is not None:
                lease.release()
            raise

    def ingest(self, weights: Weights, listing: Manifest, *, moved: bool) -> Ingest:
        """Return what takes a listing in. moved: as in `Versions.point`."""
        branch, patterns = weights.source.revision, weights.patterns.key
        return Ingest(self.versions, self.volume(weights), listing, branch, patterns, moved=moved)

    def lease_key(self, weights: Weights, revision: str) -> str:
        """Return the key of the lease that whoever mirrors this revision of the source holds."""
        volume = self.volume(weights)
        name = re.sub(r"[^A-Za-z0-9-]", "-", revision)[:128]
        return f"leases/{self.versions.org}/{volume.namespace}/{volume.volume}/{name}.json"

    def close(self) -> None:
        self.versions.store.close()


@dataclass(frozen=True)
class SourceMirror:
    """One source's mirror while a mount of it is being admitted; what fails is a warning, and is gone without."""

    mirror: Mirror
    weights: Weights
    warn: Callable[[str], None]

    def holding(self, revision: str) -> tuple[Manifest | None, Mirrored | None]:
        """Return upstream's listing and the mirror's part if it holds the revision, else None twice."""
        try:
            row = self._find(revision)
            return self.mirror.holding(row) if row is not None else (None, None)
        except BdnfsError as error:
            self._gone(error)
            return None, None

    def taking(self, listing: Manifest, *, moved: bool) -> Mirrored | None:
        """Return the mirror's part in filling a listing that upstream gave. moved: as in `Versions.point`."""
        try:
            row = self._find(listing.revision)
            return (
                self.mirror.holding(row)[1] if row else self.mirror.taking(self.weights, listing, moved=moved)
            )
        except BdnfsError as error:
            self._gone(error)
            return None

    def looking(self, listing: Manifest) -> Mirrored | None:
        """Return what the mirror holds of a listing, taking nothing: for a plan."""
        try:
            row = self._find(listing.revision)
            if row is not None:
                return self.mirror.holding(row)[1]
            ingest = self.mirror.ingest(self.weights, listing, moved=False)
            return Mirrored(Digests(ingest.contents, ingest.look()))
        except BdnfsError as error:
            self._gone(error)
            return None

    def _find(self, revision: str) -> VersionRow | None:
        """Look for a revision; a mirror that does not answer soon is gone without."""
        return within(
            time.monotonic() + _FIND_S,
            lambda: self.mirror.find(self.weights, revision),
            f"asking {self.mirror.versions.store.name}",
        )

    def close(self) -> None:
        """Let the mirror go, where nothing that it gave out does."""
        self.mirror.close()

    def _gone(self, error: BdnfsError) -> None:
        self.warn(f"{self.weights.source.text}: going on without the mirror: {error}")


def mirror_of(
    config: Config, weights: Weights, secrets: Secrets, warn: Callable[[str], None]
) -> SourceMirror:
    """Return a source's mirror; the config names one."""
    mirror = open_mirror(config, secrets)
    assert mirror is not None
    return SourceMirror(mirror, weights, warn)


def _mirror_for(weights: Weights, config: Config, secrets: Secrets) -> Mirror:
    mirror = open_mirror(config, secrets)
    if mirror is None:
        raise SpecError(
            f"{weights.source.text}: is in a mirror, and the config names none; write mirror: <url> into it"
        )
    return mirror


def volume_revision(weights: Weights, config: Config, secrets: Secrets) -> str:
    """Return the digest of the version that a source of the scheme bdn names now."""
    mirror = _mirror_for(weights, config, secrets)
    try:
        return mirror.versions.resolve(weights.source.ref).row.digest
    finally:
        mirror.close()


def volume_origin(weights: Weights, config: Config, secrets: Secrets) -> VolumeOrigin:
    """Return what reads a source of the scheme bdn."""
    mirror = _mirror_for(weights, config, secrets)
    return VolumeOrigin(mirror.versions, weights.source.ref)


def open_mirror(config: Config, secrets: Secrets) -> Mirror | None:
    """Return the config's mirror, None where it names none; nothing is asked of it yet."""
    if config.mirror is None:
        return None
    name = config.mirror.secret_name
    secret = Named(f"the secret {name!r}", lambda: secrets.read(name)) if name else None
    store = open_store(config.mirror.url, config.upstream, secret)
    return Mirror(Versions(store, config.tenant or TENANT), config.mirror.namespace, config)
