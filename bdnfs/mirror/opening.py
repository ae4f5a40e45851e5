"""From a mirror's URL to its store; each kind is imported only when it is asked for."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from bdnfs.core.errors import CredentialsError, SpecError
from bdnfs.mirror.keys import is_key
from bdnfs.mirror.store import Store
from bdnfs.origins.credentials import Credential, Named, Reread
from bdnfs.spec.secret import Secret
from bdnfs.spec.source import redacted
from bdnfs.spec.upstream import UpstreamConfig

if TYPE_CHECKING:
    from bdnfs.origins.http import HttpConfig
    from bdnfs.origins.objects import ObjectPlace

_FORMS = (
    "s3://bucket/prefix, gs://bucket/prefix, r2://account.bucket/prefix, cw://bucket/prefix, "
    "azure://account/container/prefix or an absolute directory"
)


def open_store(url: str, upstream: UpstreamConfig, secret: Secret | Named | None) -> Store:
    """Return the store that url names; nothing is asked of it yet.

    secret: goes before what upstream holds; a named one is read again where it may have been renewed

    Raises SpecError for a URL that can't be served, CredentialsError for a secret of the wrong shape.
    """
    if url.startswith("/"):
        return _directory(url)
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise _refused(url, "a file:// URL has three slashes and an absolute path")
        return _directory(unquote(parts.path))
    opened = {"s3": _s3, "r2": _r2, "cw": _cw, "gs": _gs, "azure": _azure}.get(scheme)
    if opened is None:
        raise _refused(url, f"it has to be {_FORMS}")
    place, prefix = _parts(rest, 2 if scheme == "azure" else 1)
    if not all(place) or (prefix and not is_key(prefix)):
        raise _refused(url, f"it has to be {_FORMS}, the prefix of letters, digits and ._-")
    from bdnfs.origins.http import HttpConfig  # brings urllib3, which a directory needs not

    # As sources of these schemes have it.
    bundle = upstream.aws.get("AWS_CA_BUNDLE") if scheme in ("s3", "r2", "cw") else None
    bundle = bundle or upstream.ca_bundle
    http = HttpConfig(upstream.proxies, bundle, upstream.stall_s, max(32, upstream.fetches_max))
    if isinstance(secret, Secret):
        known = secret
        secret = Named("the mirror's secret", lambda: known)
    try:
        return opened(place, prefix, upstream, secret, http)
    except CredentialsError as error:
        raise CredentialsError(f"mirror {redacted(url)}: {error}") from None


def _parts(rest: str, count: int) -> tuple[list[str], str]:
    """Return the first `count` names of rest, and what follows them."""
    names = [*rest.rstrip("/").split("/", count), *[""] * (count + 1)]
    return names[:count], names[count]


def _s3(
    place: list[str], prefix: str, upstream: UpstreamConfig, secret: Named | None, http: "HttpConfig"
) -> Store:
    from bdnfs.origins.aws import aws_access
    from bdnfs.origins.s3 import S3Bucket

    access = aws_access(upstream.aws, secret)
    return _objects(lambda http: S3Bucket(place[0], access, http), prefix, http, access.keys)


def _r2(
    place: list[str], prefix: str, upstream: UpstreamConfig, secret: Named | None, http: "HttpConfig"
) -> Store:
    from bdnfs.origins.s3_alike import r2_bucket

    bucket = r2_bucket(place[0], upstream.aws, secret, http)
    return _objects(lambda http: replace(bucket, http=http), prefix, http, bucket.access.keys)


def _cw(
    place: list[str], prefix: str, upstream: UpstreamConfig, secret: Named | None, http: "HttpConfig"
) -> Store:
    from bdnfs.origins.s3_alike import cw_bucket

    bucket = cw_bucket(place[0], upstream.aws, secret, http)
    return _objects(lambda http: replace(bucket, http=http), prefix, http, bucket.access.keys)


def _azure(
    place: list[str], prefix: str, upstream: UpstreamConfig, secret: Named | None, http: "HttpConfig"
) -> Store:
    from bdnfs.origins.azure import AzureContainer
    from bdnfs.origins.azure_access import azure_access, azure_key

    account, container = place
    given = Reread(secret.name, lambda: azure_key(secret.read().value, secret.name)) if secret else None
    access = azure_access(account, upstream.azure, given)
    return _objects(lambda http: AzureContainer(container, access, http), prefix, http, access.key)


def _objects(
    place: "Callable[[HttpConfig], ObjectPlace]",
    prefix: str,
    http: "HttpConfig",
    credential: Credential[Any] | None,
) -> Store:
    from bdnfs.mirror.objects import ObjectsStore

    return ObjectsStore(place, prefix, http, credential)


def _gs(
    place: list[str], prefix: str, upstream: UpstreamConfig, secret: Named | None, http: "HttpConfig"
) -> Store:
    try:
        from bdnfs.mirror.gcs import GcsStore
        from bdnfs.origins.gcs_access import gcs_endpoint, gcs_token, machine_token
        from bdnfs.origins.gcs_client import GcsClient
        from bdnfs.origins.google import WRITING
    except ImportError:
        raise SpecError("mirror: for gs:// gcsfs is needed; run: pip install 'bdnfs[gcs]'") from None
    token = gcs_token(upstream, None, secret, http, WRITING)
    machine = None if token else machine_token(upstream.google, http)
    client = GcsClient(gcs_endpoint(upstream.google), http)
    return GcsStore(place[0], prefix, token, client, http.stall_s, machine)


def _directory(path: str) -> Store:
    from bdnfs.mirror.directory import DirectoryStore

    if "\0" in path or os.path.normpath(path) in ("/", "//"):
        raise _refused(path, "name a directory of its own")
    return DirectoryStore(os.path.normpath(path))


def _refused(url: str, why: str) -> SpecError:
    return SpecError(f"mirror: {redacted(url)[:200]!r} can't be used: {why}; mend mirror in the config")
