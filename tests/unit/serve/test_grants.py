"""Statements under the service's own key: only what it sealed opens, only for what it was sealed for."""

import time

from hypothesis import given
from hypothesis import strategies as st

from bdnfs.serve.grants import SEALED_CHARS_MAX, Grant, Grants, Purpose
from bdnfs.serve.refusal import Refusal
from bdnfs.serve.signature import Asked, signer

GRANTS = Grants(b"k" * 32)
GRANT = Grant("acme", ("weights",), ("tiny",), int(time.time()) + 3600)
SEALED = GRANTS.seal(Purpose.TOKEN, GRANT)


def test_what_was_sealed_opens_for_its_purpose_under_its_key() -> None:
    assert GRANTS.open(Purpose.TOKEN, SEALED) == GRANT
    assert GRANTS.open(Purpose.SESSION, SEALED) is None
    assert Grants(b"x" * 32).open(Purpose.TOKEN, SEALED) is None
    assert not GRANT.is_over
    assert Grant("acme", (), (), int(time.time()) - 1).is_over


def test_keys_go_with_their_session_and_show_nothing() -> None:
    session = GRANTS.seal(Purpose.SESSION, GRANT)
    found = GRANTS.credentials(session)
    assert found == Grants(b"k" * 32).credentials(session)
    assert found.secret_key not in repr(found) + session
    others = [GRANTS.credentials(session + "x"), Grants(b"x" * 32).credentials(session)]
    assert len({each.secret_key for each in (found, *others)}) == 3
    assert len({each.access_key for each in (found, *others)}) == 3
    assert len(found.access_key) == 20


@given(st.integers(0, len(SEALED)), st.integers(0, len(SEALED)), st.text(max_size=8))
def test_no_other_text_opens(start: int, end: int, text: str) -> None:
    changed = SEALED[:start] + text + SEALED[end:]
    assert (GRANTS.open(Purpose.TOKEN, changed) is None) == (changed != SEALED)


def test_what_is_too_long_does_not_open() -> None:
    grant = Grant("acme", ("n" * SEALED_CHARS_MAX,), (), 1)
    assert GRANTS.open(Purpose.TOKEN, GRANTS.seal(Purpose.TOKEN, grant)) is None


_TEXTS = st.binary(max_size=60) | st.sampled_from(
    [b"20260101T000000Z", b"UNSIGNED-PAYLOAD", GRANTS.seal(Purpose.SESSION, GRANT).encode(), b"host"]
)
_NAMES = st.sampled_from(
    [b"host", b"x-amz-date", b"x-amz-content-sha256", b"x-amz-security-token", b"range", b"x-amz-acl"]
)
_AUTHORIZATION = st.builds(
    lambda key, date, names: (
        f"AWS4-HMAC-SHA256 Credential={key}/{date}/us-east-1/s3/aws4_request, "
        f"SignedHeaders={names}, Signature={'0' * 64}"
    ).encode(),
    st.sampled_from(["BDNFSX", GRANTS.credentials(GRANTS.seal(Purpose.SESSION, GRANT)).access_key]),
    st.sampled_from(["20260101", "00000000"]),
    st.sampled_from(["host;x-amz-content-sha256;x-amz-date;x-amz-security-token", "host", ";", "host;host"]),
)


@given(
    st.sampled_from(["GET", "HEAD"]),
    st.binary(max_size=40),
    st.binary(max_size=40),
    st.lists(st.tuples(_NAMES, _TEXTS), max_size=8),
    _AUTHORIZATION | _TEXTS,
)
def test_whatever_comes_is_refused_and_breaks_nothing(
    method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]], authorization: bytes
) -> None:
    asked = Asked(method, path, query, [*headers, (b"authorization", authorization)])
    assert isinstance(signer(asked, GRANTS), Refusal)
