"""What an answer, or none, means in our words. Standard library only: the hit path reads it, too."""

import re
import ssl
from http import HTTPStatus
from http.client import InvalidURL
from typing import Protocol
from urllib.parse import urlsplit

from bdnfs.core.errors import BdnfsError, CredentialsError, NotFoundError, UnavailableError, UpstreamError

# RFC 9110, section 14.4; no file has more bytes than 18 digits say.
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)", re.ASCII)
_DATE_CHARS_MAX = 64
_SHOWN_CHARS_MAX = 2500


class Headers(Protocol):
    """An answer's headers; names in any case."""

    def get(self, name: str, /) -> str | None: ...


def shown(url: str) -> str:
    """Return url as messages show it: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed URL"
    text = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    # A server chooses where it redirects: nothing of that may move a terminal's cursor, or fill its screen.
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= _SHOWN_CHARS_MAX else text[: _SHOWN_CHARS_MAX - 1] + "…"


def retry_after_s(value: str | None) -> float | None:
    """Return the seconds a Retry-After header asks to wait (a number or an HTTP date), or None."""
    if not value or len(value) > _DATE_CHARS_MAX:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", value.strip(), re.ASCII):
        return float(value)
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        date = parsedate_to_datetime(value)
        # RFC 9110: HTTP dates are GMT, whether or not they say so.
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def content_range(headers: Headers) -> tuple[int | None, int | None, int | None]:
    """Return (start, stop, total bytes) of Content-Range, half-open; None for each it doesn't say."""
    match = _CONTENT_RANGE.fullmatch((headers.get("Content-Range") or "").strip())
    if match is None:
        return None, None, None
    start = int(match[1]) if match[1] else None
    stop = int(match[2]) + 1 if match[2] else None
    return start, stop, None if match[3] == "*" else int(match[3])


def content_length(headers: Headers) -> int | None:
    """Return the body's bytes as announced, or None where the headers don't say."""
    value = (headers.get("Content-Length") or "").strip()
    if headers.get("Transfer-Encoding") or not re.fullmatch("[0-9]{1,18}", value, re.ASCII):
        return None
    return int(value)


def status_error(doing: str, url: str, status: int, headers: Headers) -> BdnfsError:
    """Return the error for an answer that is no success, by its status alone."""
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    said = f"{doing}: {shown(url)} answered {phrase}"
    if status in (401, 403):
        return CredentialsError(f"{said}; check the credentials for this source (auth_secret_name)")
    if status == 407:
        return CredentialsError(f"{said}; put the proxy's user and password into its URL")
    if status in (404, 410):
        return NotFoundError(f"{said}; check the source's spelling and its revision")
    if status in (408, 425, 429) or status >= 500:
        wait_s = retry_after_s(headers.get("Retry-After"))
        if wait_s is None and status == 429:
            # The Hub's way: https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-09.html
            left = re.search(r";\s*t\s*=\s*([0-9]{1,9})", headers.get("RateLimit") or "")
            wait_s = float(left[1]) if left else None
        asked = "" if wait_s is None else f", asking to wait {wait_s:.0f} s"
        return UnavailableError(f"{said}{asked}; try again later", retry_after_s=wait_s)
    return UpstreamError(f"{said}, which is of no use here; check the source and the endpoint")


def network_error(doing: str, url: str, error: BaseException) -> BdnfsError:
    """Return the error for a request that got no whole answer.

    The foreign text is left out, and callers raise `from None`: it may hold the URL or a header.
    """
    root = root_cause(error)
    if isinstance(root, ssl.SSLCertVerificationError):
        return UpstreamError(
            f"{doing}: TLS to {shown(url)} failed: "
            f"{root.verify_message or 'the certificate is not trusted'}; "
            "if a private authority signed it, name its certificate as the CA bundle (SSL_CERT_FILE)"
        )
    if isinstance(root, ssl.SSLError) and not isinstance(root, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return UpstreamError(
            f"{doing}: TLS to {shown(url)} failed: {getattr(root, 'reason', None) or 'no reason given'}; check the "
            "URL's scheme and port"
        )
    # http.client tells a proxy's refusal in words only.
    tunnel = (
        re.match("Tunnel connection failed: ([0-9]{3})", str(root)) if isinstance(root, OSError) else None
    )
    if tunnel and tunnel[1] == "407":
        return status_error(doing, url, 407, {})
    if isinstance(root, ValueError | InvalidURL):
        return UpstreamError(
            f"{doing}: {shown(url)} or a header for it is malformed; check the source and the credentials"
        )
    if isinstance(root, TimeoutError):
        found = "gave no answer in time, or too few bytes"
    elif isinstance(root, OSError):
        reason = root.strerror or (tunnel[0] if tunnel else type(root).__name__)
        found = f"could not be reached or broke off ({reason})"
    else:
        found = f"broke off in the middle of its answer ({type(root).__name__})"
    return UnavailableError(f"{doing}: {shown(url)} {found}; try again, or check network and proxy")


def root_cause(error: BaseException) -> BaseException:
    """Return the innermost cause that says something, through the ways urllib3 wraps them."""
    for _ in range(8):
        inner = [getattr(error, "original_error", None), error.__cause__, *error.args]
        cause = next((each for each in inner if isinstance(each, Exception) and each is not error), None)
        if cause is None:
            break
        error = cause
    return error
