"""The buckets of other providers than AWS: r2://, cw://, azure:// and gs://."""

from typing import Any

from bdnfs.core.errors import SpecError
from bdnfs.origins.base import Origin
from bdnfs.origins.credentials import Credential, Named, Reread
from bdnfs.origins.http import HttpConfig
from bdnfs.spec.auth import WeightsAuth
from bdnfs.spec.source import Source
from bdnfs.spec.upstream import UpstreamConfig


def open_bucket(
    source: Source, upstream: UpstreamConfig, auth: WeightsAuth | None, secret: Named | None, http: HttpConfig
) -> tuple[Origin, Credential[Any] | None]:
    """Return the origin of such a source, and what it is shown where that may be renewed.

    Raises SpecError where it can't be opened, CredentialsError for a secret of the wrong shape.
    """
    if source.scheme in ("r2", "cw"):
        from bdnfs.origins.objects import ObjectOrigin
        from bdnfs.origins.s3_alike import cw_bucket, r2_bucket

        place, _, prefix = source.rest.partition("/")
        bucket = (r2_bucket if source.scheme == "r2" else cw_bucket)(place, upstream.aws, secret, http)
        return ObjectOrigin(bucket, prefix, http), bucket.access.keys
    if source.scheme == "azure":
        from bdnfs.origins.azure import AzureOrigin
        from bdnfs.origins.azure_access import azure_access, azure_key

        account, container, prefix = (*source.rest.split("/", 2), "")[:3]
        given = Reread(secret.name, lambda: azure_key(secret.read().value, secret.name)) if secret else None
        access = azure_access(account, upstream.azure, given)
        return AzureOrigin(container, prefix, access, http), access.key
    try:
        from bdnfs.origins.gcs import GcsOrigin
        from bdnfs.origins.gcs_client import GcsClient
    except ImportError:
        raise SpecError(
            f"source {source.key}: gcsfs is not installed; run: pip install 'bdnfs[gcs]'"
        ) from None
    from bdnfs.origins.gcs_access import gcs_endpoint, gcs_token, machine_token

    token = gcs_token(upstream, auth, secret, http)
    name, _, prefix = source.rest.partition("/")
    client = GcsClient(gcs_endpoint(upstream.google), http)
    machine = None if token else machine_token(upstream.google, http)
    return GcsOrigin(name, prefix, token, client, http.stall_s, machine), token
