import errno
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from bdnfs.core.errors import BdnfsError, CredentialsError, UnavailableError, UpstreamError
from bdnfs.origins.answers import (
    content_length,
    content_range,
    network_error,
    retry_after_s,
    shown,
    status_error,
)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://user:pw@host:8443/a/b?X-Amz-Signature=1#f", "https://host:8443/a/b"),
        ("http://host", "http://host"),
        ("https://a@b@host/x", "https://host/x"),
        ("http://[bad?token=1", "a malformed URL"),
    ],
)
def test_a_shown_url_has_nothing_secret(url: str, text: str) -> None:
    assert shown(url) == text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 17 ", 17.0),
        ("1.5", 1.5),
        (None, None),
        ("", None),
        ("-3", None),
        ("soon", None),
        ("inf", None),
    ],
)
def test_retry_after_in_seconds(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value) == seconds


def test_retry_after_as_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=90)
    assert retry_after_s(format_datetime(soon, usegmt=True)) == pytest.approx(90, abs=3)
    assert retry_after_s(soon.strftime("%a, %d %b %Y %H:%M:%S")) == pytest.approx(90, abs=3)
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("bytes 0-9/100", (0, 10, 100)),
        ("bytes 5-5/*", (5, 6, None)),
        ("bytes */77", (None, None, 77)),
        ("", (None, None, None)),
        ("bytes 0-9", (None, None, None)),
        ("bytes=0-9/10", (None, None, None)),
        ("bytes ٠-٩/١٠", (None, None, None)),
    ],
)
def test_content_range(value: str, found: tuple[int | None, int | None, int | None]) -> None:
    assert content_range({"Content-Range": value}) == found


def test_content_length() -> None:
    assert content_length({"Content-Length": "12"}) == 12
    assert content_length({"Content-Length": "12", "Transfer-Encoding": "chunked"}) is None
    assert content_length({"Content-Length": "+12"}) is None
    assert content_length({}) is None


def test_the_hubs_rate_limit_says_how_long_to_wait() -> None:
    error = status_error("reading", "http://h/x", 429, {"RateLimit": '"api";r=0;t=55'})
    assert isinstance(error, UnavailableError)
    assert error.retry_after_s == 55.0
    error = status_error("reading", "http://h/x", 429, {"RateLimit": '"api";r=0;t=55', "Retry-After": "7"})
    assert isinstance(error, UnavailableError)
    assert error.retry_after_s == 7.0


def test_a_status_that_nobody_knows_is_shown_by_its_number() -> None:
    assert "799" in str(status_error("reading", "http://h/x", 799, {}))


def test_a_proxys_refusal_is_about_credentials() -> None:
    error = network_error(
        "reading", "https://h/x", OSError("Tunnel connection failed: 407 Authentication Required")
    )
    assert isinstance(error, CredentialsError)
    error = network_error("reading", "https://h/x", OSError("Tunnel connection failed: 503 Busy"))
    assert isinstance(error, UnavailableError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), UnavailableError),
        (TimeoutError(), UnavailableError),
        (ssl.SSLEOFError(8, "eof"), UnavailableError),
        (ssl.SSLError(1, "wrong version"), UpstreamError),
        (ValueError("Invalid header value b'Bearer secret'"), UpstreamError),
    ],
)
def test_a_foreign_error_is_one_class_and_its_text_stays_behind(
    error: Exception, expected: type[BdnfsError]
) -> None:
    wrapped = RuntimeError("secret", error)
    for each in (error, wrapped):
        found = network_error("reading x", "http://h/x?secret", each)
        assert type(found) is expected
        assert "secret" not in str(found)
        assert "reading x" in str(found)
