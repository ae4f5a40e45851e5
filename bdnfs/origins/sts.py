"""AWS's Security Token Service: a role's keys for a while, for an OIDC token or for this machine's own keys.

obstore could ask for a token's (AssumeRoleWithWebIdentity), but not for a key's (AssumeRole), and what
the service answered would be lost in its errors; so both are one POST of ours.
"""

import contextlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from datetime import datetime
from urllib.parse import urlencode

from bdnfs.core.errors import CredentialsError, UnavailableError, UpstreamError
from bdnfs.origins.answers import retry_after_s, shown
from bdnfs.origins.credentials import AwsKeys, Credential, Exchanged, Temporary, refuse_expired
from bdnfs.origins.http import HttpClient, HttpConfig
from bdnfs.origins.sigv4 import FORM, signed_form

_VERSION = "2011-06-15"
_ANSWER_BYTES_MAX = 64 << 10
# Letters alone: whatever was shown to a server that says it back has digits.
_CODE = re.compile("[A-Za-z.]{1,48}", re.ASCII)
_PASSING = (
    "Throttling",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "InternalFailure",
    "IDPCommunicationError",
)
# What to check, by what the service calls the error.
_CHECKS = {
    "ExpiredTokenException": "the OIDC token has expired; see that whoever writes its file renews it",
    "InvalidIdentityToken": "AWS does not accept the OIDC token; check that IAM has an identity provider for its "
    "issuer, and the token's audience",
    "IDPRejectedClaim": "the issuer rejected the OIDC token; check that it is still valid",
    "ExpiredToken": "this machine's own session has expired; renew AWS_SESSION_TOKEN or the profile",
    "InvalidClientTokenId": "AWS does not know this machine's own key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "this machine's own secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "the role may not be assumed; check its ARN, that its trust policy names this machine's "
    "identity (or the token's issuer, audience and subject), and that a policy allows it",
    "ValidationError": "check the role's ARN",
    "RegionDisabledException": "the STS of that region is switched off; name another region",
}


class Sts:
    """The service of one region. variables: AWS_*, of which AWS_ENDPOINT_URL_STS may name another endpoint."""

    def __init__(self, region: str, variables: Mapping[str, str], http: HttpConfig) -> None:
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        endpoint = variables.get("AWS_ENDPOINT_URL_STS") or variables.get("AWS_ENDPOINT_URL")
        self.url = (endpoint or f"https://sts.{region}.{domain}").rstrip("/") + "/"
        self._region = region
        self._session = variables.get("AWS_ROLE_SESSION_NAME") or "bdnfs"
        self._http = http

    def by_token(self, name: str, role_arn: str, token: Callable[[], str]) -> Credential[AwsKeys]:
        """Return the role's keys, for the OIDC token that `token` reads."""

        def exchange() -> Temporary[AwsKeys]:
            return self._ask(name, "AssumeRoleWithWebIdentity", role_arn, {"WebIdentityToken": token()}, None)

        return Exchanged(name, exchange, self._wait_s)

    def by_keys(self, name: str, role_arn: str, own: Credential[AwsKeys]) -> Credential[AwsKeys]:
        """Return the role's keys, for this machine's own."""

        def exchange() -> Temporary[AwsKeys]:
            return self._ask(name, "AssumeRole", role_arn, {}, own.current())

        return Exchanged(name, exchange, self._wait_s)

    @property
    def _wait_s(self) -> float:
        return 2 * self._http.stall_s

    def _ask(
        self, name: str, action: str, role_arn: str, fields: Mapping[str, str], keys: AwsKeys | None
    ) -> Temporary[AwsKeys]:
        form = {"Action": action, "Version": _VERSION, "RoleArn": role_arn, "RoleSessionName": self._session}
        body = urlencode({**form, **fields}).encode()
        headers = {"content-type": FORM}
        if keys is not None:
            headers = signed_form(self.url, body, "sts", self._region, keys)
        doing = f"asking the STS for keys by {name}"
        with (
            contextlib.closing(HttpClient(self._http)) as client,
            client.open("POST", self.url, doing, headers, body=body, follow=False) as reply,
        ):
            content = reply.content(_ANSWER_BYTES_MAX)
            if reply.status != 200:
                raise self._refusal(doing, reply.status, content, reply.headers.get("Retry-After"))
        return self._keys(doing, content)

    def _refusal(self, doing: str, status: int, content: bytes, retry_after: str | None) -> Exception:
        code = _found(content, "Code")
        code = code if _CODE.fullmatch(code) else ""
        said = f"{doing}: {shown(self.url)} answered {status} {code}".rstrip()
        if status in (408, 429) or status >= 500 or code.startswith(_PASSING):
            return UnavailableError(f"{said}; try again later", retry_after_s=retry_after_s(retry_after))
        if code in _CHECKS or status in (401, 403):
            return CredentialsError(f"{said}: {_CHECKS.get(code, 'check the role and who may assume it')}")
        return UpstreamError(f"{said}, which is of no use here; check AWS_ENDPOINT_URL_STS and the region")

    def _keys(self, doing: str, content: bytes) -> Temporary[AwsKeys]:
        names = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
        key_id, secret, token, expiration = (_found(content, name) for name in names)
        try:
            expires_s = datetime.fromisoformat(expiration).timestamp()
        except (ValueError, OverflowError):
            expires_s = 0.0
        if not (key_id and secret and token and expires_s):
            raise UpstreamError(f"{doing}: {shown(self.url)} answered no keys; check AWS_ENDPOINT_URL_STS")
        refuse_expired(doing, expires_s)
        return Temporary(AwsKeys(key_id, secret, token), expires_s)


def _found(content: bytes, name: str) -> str:
    """Return the text of an answer's first element called name, in whatever namespace; else nothing."""
    if b"<!" in content:  # no declarations: an entity could stand for any amount of text
        return ""
    try:
        found = ElementTree.fromstring(content).find(f".//{{*}}{name}")
    except (ElementTree.ParseError, ValueError):
        return ""
    return (found.text or "").strip() if found is not None else ""
