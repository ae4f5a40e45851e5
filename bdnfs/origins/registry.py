"""From a source to the origin that serves it; each kind is imported only when it is asked for."""

import json
from dataclasses import replace
from typing import Any

from bdnfs.core.errors import UNREADABLE, CredentialsError, SpecError
from bdnfs.origins.authorized import Authorized
from bdnfs.origins.base import Origin
from bdnfs.origins.credentials import Credential, Named, named
from bdnfs.spec.auth import WeightsAuth
from bdnfs.spec.secret import Secret, Secrets
from bdnfs.spec.source import Source
from bdnfs.spec.upstream import UpstreamConfig

_BUCKETS = ("gs", "azure", "r2", "cw")
_NO_SECRETS = Secrets()


def open_origin(
    source: Source,
    upstream: UpstreamConfig,
    auth: WeightsAuth | Secret | None = None,
    secrets: Secrets = _NO_SECRETS,
) -> Origin:
    """Return the origin of source; nothing is asked of it yet, and of an exchange only once it is read.

    auth:    how it is read, or the secret itself; goes before what upstream holds (a token, AWS keys)
    secrets: where the secret that auth names is read, again and again

    Raises SpecError for a scheme that can't be served, CredentialsError for a secret that is missing or
    of the wrong shape.
    """
    secret = _secret(auth, secrets)
    try:
        origin, credential = _opened(source, upstream, auth, secret)
    except CredentialsError as error:
        name = "" if secret is None or secret.name in str(error) else f"{secret.name}: "
        raise CredentialsError(f"source {source.key}: {name}{error}") from None
    return origin if credential is None else Authorized(origin, credential, source.key)


def _secret(auth: WeightsAuth | Secret | None, secrets: Secrets) -> Named | None:
    if isinstance(auth, Secret):
        return Named("the secret given", lambda: auth)
    if auth is None or auth.auth_secret_name is None:
        return None
    return named(secrets, auth.auth_secret_name)


def _opened(
    source: Source, upstream: UpstreamConfig, auth: WeightsAuth | Secret | None, secret: Named | None
) -> tuple[Origin, Credential[Any] | None]:
    """Return the origin, and what it is shown where that may be renewed."""
    scheme, rest = source.scheme, source.rest
    if scheme in ("file", "local"):
        from bdnfs.origins.directory import DirectoryOrigin

        return DirectoryOrigin(rest), None
    if scheme in ("hf", "http", "https", "s3", *_BUCKETS):
        return _web(source, upstream, auth, secret)
    given = secret.read().value if secret else None
    if scheme in ("sftp", "ssh"):
        missing = _missing(scheme)
        if missing:
            raise SpecError(f"source {source.key}: paramiko is not installed; run: pip install 'bdnfs[sftp]'")
        from bdnfs.origins.sftp import SftpOrigin

        return SftpOrigin(source.key, given, upstream.stall_s), None
    missing = _missing(scheme)
    if missing:
        raise SpecError(f"source {source.key}: fsspec can't open {scheme}:// yet: {missing}")
    from bdnfs.origins.generic import GenericOrigin

    return GenericOrigin(source.key, _options(given), upstream.fetches_max, upstream.stall_s * 4), None


def _web(
    source: Source, upstream: UpstreamConfig, auth: WeightsAuth | Secret | None, secret: Named | None
) -> tuple[Origin, Credential[Any] | None]:
    from bdnfs.origins.http import HttpConfig

    http = HttpConfig(upstream.proxies, upstream.ca_bundle, upstream.stall_s, max(32, upstream.fetches_max))
    if source.scheme == "hf":
        from bdnfs.origins.hub import HubOrigin
        from bdnfs.origins.tokens import hub_credential

        token = hub_credential(upstream, secret)
        return HubOrigin(upstream.hf_endpoint, source.rest, source.kind, token, http), token
    if source.scheme == "s3":
        from bdnfs.origins.aws import aws_access
        from bdnfs.origins.lending import aws_keys
        from bdnfs.origins.s3 import S3Origin

        bucket, _, prefix = source.rest.partition("/")
        http = replace(http, ca_bundle=upstream.aws.get("AWS_CA_BUNDLE") or http.ca_bundle)
        lent = aws_keys(auth, upstream, http) if isinstance(auth, WeightsAuth) and secret is None else None
        access = aws_access(upstream.aws, lent or secret)
        return S3Origin(bucket, prefix, access, http), access.keys
    if source.scheme in _BUCKETS:
        from bdnfs.origins.buckets import open_bucket

        return open_bucket(source, upstream, auth if isinstance(auth, WeightsAuth) else None, secret, http)
    from bdnfs.origins.https import HttpsOrigin
    from bdnfs.origins.tokens import https_credential

    url = f"{source.scheme}://{source.rest}"
    shown = https_credential(url, secret)
    return HttpsOrigin(url, shown, http), shown


def _missing(scheme: str) -> str | None:
    from bdnfs.origins.generic import needs

    return needs(scheme)


def _options(secret: str | None) -> dict[str, Any]:
    if secret is None:
        return {}
    if not secret.startswith("{"):
        return {"password": secret}
    try:
        options = json.loads(secret)
    except UNREADABLE:
        options = None
    if not isinstance(options, dict):
        raise CredentialsError(
            "a secret for this source is a password, or JSON with the options of fsspec's "
            "filesystem; it is neither"
        )
    return options
