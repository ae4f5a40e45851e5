"""AWS Signature Version 4 for a request that is one POST of a form.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html. Own code,
because nothing that bdnfs needs anyway signs one: obstore does it for S3 alone, and asks no STS for AssumeRole.
"""

import hashlib
import hmac
import time
from urllib.parse import urlsplit

from bdnfs.origins.credentials import AwsKeys

_ALGORITHM = "AWS4-HMAC-SHA256"
FORM = "application/x-www-form-urlencoded; charset=utf-8"


def signed_form(url: str, body: bytes, service: str, region: str, keys: AwsKeys) -> dict[str, str]:
    """Return the headers with which `body`, a form, is to be posted to url (without a query) now."""
    parts = urlsplit(url)
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    headers = {"content-type": FORM, "host": parts.netloc.rpartition("@")[2], "x-amz-date": now}
    if keys.session_token:
        headers["x-amz-security-token"] = keys.session_token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = "\n".join(("POST", parts.path or "/", "", lines, names, hashlib.sha256(body).hexdigest()))
    scope = f"{now[:8]}/{region}/{service}/aws4_request"
    said = "\n".join((_ALGORITHM, now, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{keys.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, said.encode(), "sha256").hex()
    given = f"Credential={keys.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "authorization": f"{_ALGORITHM} {given}"}
