"""Google's access tokens: for a service account's key, or for an OIDC token by way of a workload identity pool.

google-auth does the exchanges, over our own HTTP: the same proxies, authorities and deadlines, and
errors that say what Google answered.
"""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any, NamedTuple

from bdnfs.core.errors import (
    UNREADABLE,
    BdnfsError,
    CredentialsError,
    SpecError,
    UnavailableError,
    UpstreamError,
)
from bdnfs.origins.answers import retry_after_s, shown
from bdnfs.origins.credentials import AccessToken, Credential, Exchanged, Temporary, refuse_expired
from bdnfs.origins.http import HttpClient, HttpConfig

# A mirror is written; sources are only read. https://cloud.google.com/storage/docs/oauth-scopes
READING = "https://www.googleapis.com/auth/devstorage.read_only"
WRITING = "https://www.googleapis.com/auth/devstorage.read_write"
_STS, _IAM = "https://sts.googleapis.com/", "https://iamcredentials.googleapis.com/"
# gcloud's own variables for its properties api_endpoint_overrides/….
STS_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_STS"
IAM_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS"
_JWT = "urn:ietf:params:oauth:token-type:jwt"
_ANSWER_BYTES_MAX = 64 << 10
# Letters alone: whatever was shown to a server that says it back has digits.
_CODE = re.compile("[A-Za-z_]{1,40}", re.ASCII)
_ACCOUNT_FIELDS = ("client_email", "private_key", "token_uri")
EXPECTED = "a secret for gs:// is the JSON key of a service account, as Google's console gives it"


def account_fields(text: str) -> dict[str, str]:
    """Return a service account's JSON key; raise CredentialsError if text is none."""
    try:
        found = json.loads(text)
    except UNREADABLE:
        raise CredentialsError(f"{EXPECTED}; the one given is not JSON") from None
    if not isinstance(found, dict) or found.get("type") != "service_account":
        raise CredentialsError(f'{EXPECTED}; the one given has no "type": "service_account"')
    missing = [name for name in _ACCOUNT_FIELDS if not isinstance(found.get(name), str) or not found[name]]
    if missing:
        raise CredentialsError(f"{EXPECTED}; {' and '.join(missing)} is missing")
    return found


def by_account(
    name: str, read: Callable[[], Mapping[str, str]], http: HttpConfig, scope: str = READING
) -> Credential[AccessToken]:
    """Return the tokens, good for scope, of the service account whose JSON key `read` returns now."""

    def exchange() -> Temporary[AccessToken]:
        from google.oauth2.service_account import Credentials

        try:
            account = Credentials.from_service_account_info(read(), scopes=[scope])  # type: ignore[no-untyped-call]
        except (ValueError, TypeError):
            raise CredentialsError(f"{name}: {EXPECTED}; its private_key can't be used") from None
        return _refreshed(name, account, http)

    read()
    _need_library()
    return Exchanged(name, exchange, 2 * http.stall_s)


def by_token(
    name: str,
    account: str,
    provider: str,
    token: Callable[[], str],
    variables: Mapping[str, str],
    http: HttpConfig,
) -> Credential[AccessToken]:
    """Return the tokens of the service account `account`, for the OIDC token that `token` reads.

    provider: projects/<number>/locations/global/workloadIdentityPools/<pool>/providers/<provider>, with or
    without `//iam.googleapis.com/` before it
    """
    sts = _endpoint(variables, STS_VARIABLE, _STS)
    iam = _endpoint(variables, IAM_VARIABLE, _IAM)
    provider = provider.removeprefix("https:").removeprefix("//iam.googleapis.com").strip("/")

    def exchange() -> Temporary[AccessToken]:
        from google.auth import identity_pool

        pool = identity_pool.Credentials(  # type: ignore[no-untyped-call]
            audience=f"//iam.googleapis.com/{provider}",
            subject_token_type=_JWT,
            token_url=f"{sts}v1/token",
            subject_token_supplier=_Supplier(token),
            service_account_impersonation_url=f"{iam}v1/projects/-/serviceAccounts/{account}:generateAccessToken",
            scopes=[READING],
        )
        return _refreshed(name, pool, http)

    _need_library()
    return Exchanged(name, exchange, 2 * http.stall_s)


def _need_library() -> None:
    try:
        import google.auth  # noqa: F401
    except ImportError:
        raise SpecError("credentials for gs:// need google-auth; run: pip install 'bdnfs[gcs]'") from None


def _endpoint(variables: Mapping[str, str], name: str, default: str) -> str:
    return (variables.get(name) or default).rstrip("/") + "/"


def _refreshed(name: str, credentials: Any, http: HttpConfig) -> Temporary[AccessToken]:
    from google.auth.exceptions import GoogleAuthError

    doing = f"asking Google for an access token by {name}"
    with contextlib.closing(HttpClient(http)) as client:
        try:
            credentials.refresh(_Request(client, doing))
            expires_s = credentials.expiry.replace(tzinfo=UTC).timestamp()
            token = str(credentials.token)
        except BdnfsError:
            raise
        except (GoogleAuthError, LookupError, TypeError, AttributeError, OverflowError, *UNREADABLE) as error:
            raise UpstreamError(
                f"{doing}: the answer holds no token ({type(error).__name__}); check {STS_VARIABLE}, "
                f"{IAM_VARIABLE} or the key's token_uri"
            ) from None
    refuse_expired(doing, expires_s)
    return Temporary(AccessToken(token, expires_s), expires_s)


class _Supplier:
    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def get_subject_token(self, context: object, request: object) -> str:
        return self._token()


class _Response(NamedTuple):
    """What google-auth wants an answer to be."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class _Request:
    """google-auth's way out, through our client; what is no success is an error of ours at once."""

    def __init__(self, client: HttpClient, doing: str) -> None:
        self._client, self._doing = client, doing

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: object,
    ) -> _Response:
        sent = body.encode() if isinstance(body, str) else body
        with self._client.open(method, url, self._doing, headers, body=sent, follow=False) as reply:
            content = reply.content(_ANSWER_BYTES_MAX)
            if reply.status != 200:
                raise self._refusal(url, reply.status, content, reply.headers.get("Retry-After"))
            return _Response(reply.status, dict(reply.headers), content)

    def _refusal(self, url: str, status: int, content: bytes, retry_after: str | None) -> Exception:
        code = _code(content)
        said = f"{self._doing}: {shown(url)} answered {status} {code}".rstrip()
        if status in (408, 429) or status >= 500:
            return UnavailableError(f"{said}; try again later", retry_after_s=retry_after_s(retry_after))
        if url.endswith(":generateAccessToken"):
            check = (
                "check gcp_oidc_service_account, and that the pool's identity has the role Workload Identity User "
                "on it"
            )
        elif url.endswith("/v1/token"):
            check = (
                "check that the OIDC token has not expired, its audience and issuer, and "
                "gcp_oidc_workload_id_provider"
            )
        else:
            check = (
                "check that the service account's key is still there and enabled, and this machine's clock"
            )
        if status in (400, 401, 403, 404):
            return CredentialsError(f"{said}: {check}")
        return UpstreamError(f"{said}, which is of no use here; check {STS_VARIABLE} and {IAM_VARIABLE}")


def _code(content: bytes) -> str:
    """Return what OAuth (`error`) or Google's APIs (`error.status`) call the error, if it is a mere name."""
    try:
        found = json.loads(content)["error"]
        found = found["status"] if isinstance(found, dict) else found
    except (*UNREADABLE, KeyError, TypeError):
        return ""
    return found if isinstance(found, str) and _CODE.fullmatch(found) else ""
