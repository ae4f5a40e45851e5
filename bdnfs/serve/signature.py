"""AWS Signature Version 4 as S3 takes it in a request's headers, verified.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. Neither a signed query nor
one signed for several chunks of a body: nothing here is written, and no link is to be passed on.
"""

import hashlib
import hmac
import re
import time
from calendar import timegm
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from bdnfs.serve.grants import Grant, Grants, Purpose
from bdnfs.serve.refusal import Refusal

REGION: Final = "us-east-1"
# As S3 has it.
SKEW_S_MAX = 15 * 60.0
_ALGORITHM = "AWS4-HMAC-SHA256"
_AUTHORIZATION = re.compile(
    rf"{_ALGORITHM} Credential=([A-Z0-9]{{1,64}})/([0-9]{{8}})/([a-z0-9-]{{1,32}})/s3/aws4_request, ?"
    r"SignedHeaders=([a-z0-9;-]{1,1024}), ?Signature=([0-9a-f]{64})"
)
_UNRESERVED = "-_.~"
_NEEDED = frozenset({"host", "x-amz-content-sha256", "x-amz-date", "x-amz-security-token"})

_UNSIGNED = Refusal(403, "AccessDenied", "the request is not signed with credentials of this service")
_FOREIGN = Refusal(403, "InvalidToken", "the session token is none of this service; resolve the volume again")
_WRONG = Refusal(
    403, "SignatureDoesNotMatch", "the signature is not that of this request and these credentials"
)
_EXPIRED = Refusal(403, "ExpiredToken", "the credentials have expired; resolve the volume again")
_SKEWED = Refusal(
    403, "RequestTimeTooSkewed", "the request's time is more than 15 minutes from the service's"
)


class Asked(NamedTuple):
    """A request as it came. path, query: as sent, encoded; headers: names in lower case."""

    method: str
    path: bytes
    query: bytes
    headers: Iterable[tuple[bytes, bytes]]


def signer(asked: Asked, grants: Grants) -> Grant | Refusal:
    """Return what the credentials that signed a request open, or why it is refused."""
    headers: dict[str, str] = {}
    for raw, content in asked.headers:
        name = raw.decode("latin-1")
        value = " ".join(content.decode("latin-1").split())
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    given = _AUTHORIZATION.fullmatch(headers.get("authorization", ""))
    if given is None or not headers.keys() >= _NEEDED:
        return _UNSIGNED
    access_key, date, region, signed, signature = given.groups()
    names = signed.split(";")
    token = headers["x-amz-security-token"]
    grant = grants.open(Purpose.SESSION, token)
    if grant is None:
        return _FOREIGN
    credentials = grants.credentials(token)
    amz_date = headers["x-amz-date"]
    at_s = _seconds(amz_date)
    sound = (
        hmac.compare_digest(access_key.encode(), credentials.access_key.encode())
        and region == REGION
        and amz_date.startswith(date)
        and names == sorted(set(names))
        and _NEEDED <= set(names) <= headers.keys()
        and not any(name.startswith("x-amz-") and name not in names for name in headers)
    )
    if not sound or at_s is None:
        return _WRONG
    scope = f"{date}/{region}/s3/aws4_request"
    canonical = _canonical(asked, names, headers)
    said = "\n".join((_ALGORITHM, amz_date, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(signature, hmac.digest(key, said.encode(), "sha256").hex()):
        return _WRONG
    if grant.is_over:
        return _EXPIRED
    return _SKEWED if abs(time.time() - at_s) > SKEW_S_MAX else grant


def _canonical(asked: Asked, names: list[str], headers: dict[str, str]) -> str:
    pairs = [part.partition(b"=") for part in asked.query.split(b"&") if part]
    query = sorted((_encoded(name), _encoded(value)) for name, _, value in pairs)
    return "\n".join(
        (
            asked.method,
            quote(unquote_to_bytes(asked.path), safe="/" + _UNRESERVED),
            "&".join(f"{name}={value}" for name, value in query),
            "".join(f"{name}:{headers[name]}\n" for name in names),
            ";".join(names),
            headers["x-amz-content-sha256"],
        )
    )


def _encoded(text: bytes) -> str:
    return quote(unquote_to_bytes(text), safe=_UNRESERVED)


def _seconds(amz_date: str) -> float | None:
    try:
        return timegm(time.strptime(amz_date, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return None
