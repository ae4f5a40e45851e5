"""What obstore's errors mean. It puts all but a few of them into one class, so their text is read."""

import re
from dataclasses import dataclass

from obstore import exceptions as foreign

from bdnfs.core.errors import (
    BdnfsError,
    ChangedError,
    CredentialsError,
    NotFoundError,
    UnavailableError,
    UpstreamError,
)

_STATUS = re.compile(r"status code: ([0-9]{3})")
# Letters alone: whatever was shown to a server that says it back has digits.
_CODE = re.compile(r"<Code>([A-Za-z]{1,48})</Code>")
_BAD_CREDENTIALS = (
    *("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"),  # S3
    *("PublicAccessNotPermitted", "NoAuthenticationInformation"),  # Azure
)
# What to check, by what the store calls the refusal.
_CHECKS = {
    "ExpiredToken": "their session has expired; renew aws_session_token and what goes with it",
    "InvalidToken": "aws_session_token does not belong to these keys",
    "InvalidAccessKeyId": "the store does not know aws_access_key_id; is it of this endpoint?",
    "SignatureDoesNotMatch": "aws_secret_access_key is not that of aws_access_key_id; copy both again",
    "AccessDenied": "whoever they belong to may not do this; allow s3:ListBucket and s3:GetObject",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "AuthenticationFailed": "account_key is not this account's, or this machine's clock is wrong",
}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")


@dataclass(frozen=True)
class Server:
    """Who answers, as errors say it, and what of it the user may set.

    place:       an endpoint, or the provider's name
    setting:     the variable that names the endpoint
    credentials: what gives credentials
    given:       whether there were any
    region:      where the bucket is expected, None where there are no regions
    """

    place: str
    setting: str
    credentials: str
    given: bool
    region: str | None = None


def object_changed(doing: str) -> ChangedError:
    """Return the error of an object that is no longer the one that was listed."""
    return ChangedError(
        f"{doing}: the object is another one now (its identity or size differs from the snapshot's); "
        "it changed upstream. Mount it again for the new version"
    )


def object_error(doing: str, server: Server, error: Exception) -> BdnfsError:
    """Return what obstore's error means; its text is not passed on, it may hold what a server echoed."""
    text = str(error)
    place, setting = server.place, server.setting
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    code_match = _CODE.search(text)
    code = code_match[1] if code_match else ""
    said = f"{doing}: {place} answered {status} {code}".rstrip()
    if isinstance(error, foreign.PreconditionError):
        return object_changed(doing)
    if isinstance(error, foreign.InvalidPathError):
        return _no_path(doing, text)
    if "credential provider" in text:
        return CredentialsError(f"{doing}: {server.credentials} could not be renewed; try again")
    if code in _BAD_CREDENTIALS or _denied(error, status):
        given = "no credentials were given"
        if server.given:
            given = (
                f"the credentials given don't suffice{': ' if code in _CHECKS else ''}{_CHECKS.get(code, '')}"
            )
        return CredentialsError(f"{said}: {given}; check {server.credentials}, or auth_secret_name")
    if isinstance(error, foreign.NotFoundError | FileNotFoundError) or status == 404:
        what = "bucket" if code in _NO_BUCKET else "object"
        return NotFoundError(f"{doing}: {place} has no such {what}; check it")
    if status in (408, 429) or status >= 500:
        return UnavailableError(f"{said}; try again later")
    if status == 416:
        return object_changed(doing)
    elsewhere = "BareRedirect" in text or code in ("PermanentRedirect", "AuthorizationHeaderMalformed")
    if server.region and elsewhere:
        return UpstreamError(
            f"{doing}: the bucket is not in region {server.region}; set AWS_REGION to its region"
        )
    return _other(doing, place, setting, status, said, text)


def _denied(error: Exception, status: int) -> bool:
    return isinstance(error, foreign.PermissionDeniedError | foreign.UnauthenticatedError) or status in (
        401,
        403,
    )


def _no_path(doing: str, text: str) -> UpstreamError:
    key = re.search(r'Path "(.*)" contained|parsing Path "(.*)": Enc', text, re.DOTALL)
    name = repr((key[1] or key[2])[:200]) if key else "one"
    # Patterns choose among what was listed, and this ends the listing.
    return UpstreamError(
        f"{doing}: the key {name} has an empty, '.' or '..' component or a control character "
        "and can't be a file here; rename it, or mount a narrower prefix (ignore_patterns can't leave it out)"
    )


def _other(doing: str, place: str, setting: str, status: int, said: str, text: str) -> BdnfsError:
    if "UnexpectedRange" in text or "NotPartial" in text or "non-partial" in text:
        return UpstreamError(f"{doing}: {place} answered other bytes than were asked for; check {setting}")
    if "certificate" in text.lower() or "InvalidCertificate" in text:
        return UpstreamError(
            f"{doing}: TLS to {place} failed: its certificate is not trusted; name a CA bundle"
        )
    if "error following redirect" in text:
        return UpstreamError(
            f"{doing}: {place} redirects in a loop, or to no good place; check {setting} and the region"
        )
    if "invalid list response" in text:
        return UpstreamError(f"{doing}: {place} answered something else than a listing; check {setting}")
    if status:
        return UpstreamError(f"{said}, which is of no use here; check the source and {setting}")
    kind = re.search(r"kind: (Connect|Timeout|Interrupted|Request|Decode)\b", text)
    found_out = {"Connect": "could not be reached", "Timeout": "gave no answer in time"}
    reason = found_out.get(kind[1] if kind else "", "broke off in the middle of its answer")
    return UnavailableError(f"{doing}: {place} {reason}; try again, or check {setting}, network and proxy")
