"""Requests signed as S3 has it, whatever they ask for: an official client would not send some of them."""

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

from tests.serve.served import Answer, Served

ALGORITHM = "AWS4-HMAC-SHA256"


def signed(
    service: Served,
    origin: Mapping[str, Any],
    target: str,
    method: str = "GET",
    at_s: float | None = None,
    **headers: str,
) -> dict[str, str]:
    """Return the headers of a request for exactly this target; `headers` are signed with it."""
    path, _, query = target.partition("?")
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at_s))
    given = {
        "host": urlsplit(service.url).netloc,
        "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
        "x-amz-date": now,
        "x-amz-security-token": origin["session_token"],
        **headers,
    }
    names = sorted(given)
    pairs = sorted(part.partition("=")[::2] for part in query.split("&") if part)
    request = "\n".join(
        (
            method,
            quote(unquote_to_bytes(path), safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in pairs),
            "".join(f"{name}:{given[name]}\n" for name in names),
            ";".join(names),
            given["x-amz-content-sha256"],
        )
    )
    scope = f"{now[:8]}/{origin['region']}/s3/aws4_request"
    said = "\n".join((ALGORITHM, now, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{origin['secret_access_key']}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, said.encode(), "sha256").hex()
    credential = f"Credential={origin['access_key_id']}/{scope}"
    given["authorization"] = (
        f"{ALGORITHM} {credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    return given


def fetch(
    service: Served, origin: Mapping[str, Any], target: str, method: str = "GET", **headers: Any
) -> Answer:
    """Send a signed request for exactly this target."""
    return service.ask(method, target, signed(service, origin, target, method, **headers))
