"""Stores that speak S3's API at places of their own: Cloudflare R2 and CoreWeave AI Object Storage."""

import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from bdnfs.core.errors import SpecError
from bdnfs.origins.aws import AwsAccess, aws_access
from bdnfs.origins.credentials import Named
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.s3 import S3Bucket

R2_SETTING, CW_SETTING = "R2_ENDPOINT_URL", "CW_ENDPOINT_URL"
# https://docs.coreweave.com/products/storage/object-storage/using-object-storage/configure-endpoints
_CW_ENDPOINT = "https://cwobject.com"
# What AWS alone can make sense of: another store would be asked at AWS's place, or by AWS's means.
_AWS_ONLY = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REQUEST_PAYER")


def r2_bucket(place: str, variables: Mapping[str, str], given: Named | None, http: HttpConfig) -> S3Bucket:
    """Return the bucket that place names: `account_id.bucket`.

    https://developers.cloudflare.com/r2/api/s3/api/: one endpoint per account, and one region.
    """
    account, _, bucket = place.partition(".")
    access = _access(variables, given, R2_SETTING, f"https://{account}.r2.cloudflarestorage.com")
    return S3Bucket(bucket, replace(access, region="auto"), http, f"r2://{place}", R2_SETTING)


def cw_bucket(bucket: str, variables: Mapping[str, str], given: Named | None, http: HttpConfig) -> S3Bucket:
    """Return CoreWeave's bucket of this name; it wants that name to be part of the host's."""
    access = _access(variables, given, CW_SETTING, _CW_ENDPOINT)
    hosted = _can_be_prefixed(access.endpoint or "", CW_SETTING)
    return S3Bucket(bucket, access, http, f"cw://{bucket}", CW_SETTING, hosted)


def _access(variables: Mapping[str, str], given: Named | None, setting: str, rule: str) -> AwsAccess:
    """Return the keys that S3 would be shown, and the endpoint: the secret's, setting's, a profile's, or rule."""
    access = aws_access({name: text for name, text in variables.items() if name not in _AWS_ONLY}, given)
    named = (access.endpoint, variables.get(setting)) if given else (variables.get(setting), access.endpoint)
    endpoint = next(filter(None, named), rule).rstrip("/")
    return replace(access, endpoint=endpoint, role={}, instance=False)


def _can_be_prefixed(endpoint: str, setting: str) -> bool:
    """Return whether a bucket's name can stand before the host: not where that is an address."""
    try:
        host = urlsplit(endpoint).hostname or ""
    except ValueError:
        raise SpecError(f"{setting}: {endpoint[:200]!r} is not a URL; mend or unset it") from None
    if host == "localhost":
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False
