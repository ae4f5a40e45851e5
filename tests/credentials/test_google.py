"""Google's exchanges, against a server that stands in for its token endpoints and says what it was asked."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bdnfs.core.errors import BdnfsError, CredentialsError, UnavailableError, UpstreamError
from bdnfs.origins.credentials import AccessToken, Credential
from bdnfs.origins.google import IAM_VARIABLE, READING, STS_VARIABLE, WRITING, account_fields, by_account
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.lending import google_token
from bdnfs.spec.auth import WeightsAuth
from bdnfs.spec.upstream import OidcConfig, UpstreamConfig
from tests.credentials.servers import Answer, GoogleServer

ACCOUNT = "reader@project.iam.gserviceaccount.com"
PROVIDER = "projects/42/locations/global/workloadIdentityPools/pool/providers/cluster"
AUTH = WeightsAuth("GCP_OIDC", gcp_oidc_service_account=ACCOUNT, gcp_oidc_workload_id_provider=PROVIDER)
HTTP = HttpConfig(stall_s=5.0)
AUDIENCE = "https://oauth2.googleapis.com/token"


@pytest.fixture
def google() -> Iterator[GoogleServer]:
    with GoogleServer() as server:
        yield server


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "oidc"
    path.write_text("jwt-hidden\n")
    return path


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def account_json(key: rsa.RSAPrivateKey, token_uri: str, **fields: Any) -> str:
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
    return json.dumps(
        {"type": "service_account", "client_email": ACCOUNT, "private_key": pem, "private_key_id": "1",
         "project_id": "p", "token_uri": token_uri, **fields}
    )  # fmt: skip


def by_oidc(google: GoogleServer, token: Path, auth: WeightsAuth = AUTH) -> Credential[AccessToken]:
    variables = {STS_VARIABLE: google.url, IAM_VARIABLE: f"{google.url}/"}
    return google_token(auth, UpstreamConfig(google=variables, oidc=OidcConfig(None, str(token))), HTTP)


def failure(found: Credential[AccessToken], kind: type[BdnfsError]) -> str:
    with pytest.raises(kind) as caught:
        found.current()
    assert type(caught.value) is kind
    assert "hidden" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("before", ["", "//iam.googleapis.com/", "https://iam.googleapis.com/"])
def test_a_token_is_exchanged_and_the_service_account_impersonated(
    google: GoogleServer, token: Path, before: str
) -> None:
    auth = WeightsAuth(
        "GCP_OIDC", gcp_oidc_service_account=ACCOUNT, gcp_oidc_workload_id_provider=before + PROVIDER
    )
    found = by_oidc(google, token, auth)
    assert google.asked == []
    lent = found.current()
    assert lent.token == "ya29.lent-1"
    assert lent.expires_s == pytest.approx(time.time() + 3600, abs=120)
    exchange, impersonation = google.asked
    assert exchange.path == "/v1/token"
    assert exchange.form == {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "audience": f"//iam.googleapis.com/{PROVIDER}",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "scope": "https://www.googleapis.com/auth/iam",
        "subject_token": "jwt-hidden",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    }
    assert impersonation.path == f"/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken"
    assert impersonation.headers["authorization"] == "Bearer ya29.federated"
    assert json.loads(impersonation.body)["scope"] == [READING]
    assert found.current() is lent


def test_a_new_token_is_read_for_each_exchange(google: GoogleServer, token: Path) -> None:
    google.lifetime_s = 1.0
    found = by_oidc(google, token)
    found.current()
    token.write_text("renewed")
    while google.asked[-2].form["subject_token"] != "renewed":
        found.current()


def test_a_service_accounts_key_signs_for_its_tokens(google: GoogleServer, key: rsa.RSAPrivateKey) -> None:
    from google.auth import jwt

    text = account_json(key, f"{google.url}/token")
    found = by_account("the secret 'gcs'", lambda: account_fields(text), HTTP)
    assert found.current().token == "ya29.lent-1"
    (asked,) = google.asked
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = jwt.decode(asked.form["assertion"], certs=public.decode(), audience=AUDIENCE)
    assert (claims["iss"], claims["scope"]) == (ACCOUNT, READING)
    by_account("the mirror's", lambda: account_fields(text), HTTP, WRITING).current()
    claims = jwt.decode(google.asked[-1].form["assertion"], certs=public.decode(), audience=AUDIENCE)
    assert claims["scope"] == WRITING


@pytest.mark.parametrize(
    ("path", "status", "error", "check"),
    [
        ("/v1/token", 400, "invalid_grant", "OIDC token has not expired"),
        ("/v1/token", 401, "invalid_client", "gcp_oidc_workload_id_provider"),
        (":generateAccessToken", 403, {"code": 403, "status": "PERMISSION_DENIED"}, "Workload Identity User"),
        (":generateAccessToken", 404, {"status": "NOT_FOUND"}, "gcp_oidc_service_account"),
    ],
)
def test_a_refusal_says_account_answer_and_what_to_check(
    google: GoogleServer, token: Path, path: str, status: int, error: Any, check: str
) -> None:
    google.refusals[path] = status, error
    said = failure(by_oidc(google, token), CredentialsError)
    code = error if isinstance(error, str) else error["status"]
    for part in (f"GCP_OIDC (service account {ACCOUNT})", f"{path} answered {status} {code}", check):
        assert part in said


def test_a_key_that_was_deleted(google: GoogleServer, key: rsa.RSAPrivateKey) -> None:
    google.refusals["/token"] = 400, "invalid_grant"
    text = account_json(key, f"{google.url}/token")
    said = failure(by_account("the secret 'gcs'", lambda: account_fields(text), HTTP), CredentialsError)
    for part in ("the secret 'gcs'", "400 invalid_grant", "still there"):
        assert part in said


def test_google_in_trouble_is_worth_another_try(google: GoogleServer, token: Path) -> None:
    google.refusals["/v1/token"] = 503, "x"
    assert "503" in failure(by_oidc(google, token), UnavailableError)


def test_something_else_than_google(google: GoogleServer, token: Path) -> None:
    google.refusals["/v1/token"] = 200, "jwt-hidden"
    assert STS_VARIABLE in failure(by_oidc(google, token), UpstreamError)
    google.refusals["/v1/token"] = 302, "x"
    assert "302" in failure(by_oidc(google, token), UpstreamError)


HOSTILE = (
    b"", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 60_000, b"9" * 60_000, b'"hidden"', b"{}",
    b'{"access_token": "x"}', b'{"access_token": "x", "expires_in": "hidden"}',
    b'{"access_token": "x", "expires_in": []}', b'{"access_token": "x", "expires_in": -3600}',
    b'{"access_token": "x", "expires_in": 1e300}', b'{"accessToken": "x", "expireTime": 7}',
    b'{"accessToken": "x", "expireTime": "hidden"}', b'{"accessToken": 1}',
    b'{"accessToken": "x", "expireTime": "2001-01-01T00:00:00Z"}',
)  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: repr(body[:24]))
@pytest.mark.parametrize("end", ["/v1/token", ":generateAccessToken", "/token"])
def test_whatever_is_answered_is_one_error(
    google: GoogleServer, token: Path, key: rsa.RSAPrivateKey, end: str, body: bytes
) -> None:
    honest = google.answer
    google.answer = lambda asked: Answer(200, body) if asked.path.endswith(end) else honest(asked)  # type: ignore[method-assign]
    text = account_json(key, f"{google.url}/token")
    account = by_account("the secret 'gcs'", lambda: account_fields(text), HTTP)
    found = account if end == "/token" else by_oidc(google, token)
    if end == "/v1/token" and b'"access_token"' in body:
        with contextlib.suppress(UpstreamError):  # only what the last step lends has to end some day
            assert found.current().token == "ya29.lent-1"
        return
    failure(found, UpstreamError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hidden", "not JSON"),
        ('{"type": "authorized_user", "private_key": "hidden"}', "service_account"),
        ('{"type": "service_account", "private_key": "hidden"}', "client_email and token_uri is missing"),
    ],
)
def test_a_secret_of_another_shape(text: str, said: str) -> None:
    with pytest.raises(CredentialsError, match=said) as caught:
        account_fields(text)
    assert "hidden" not in str(caught.value)


def test_a_private_key_that_is_none(google: GoogleServer, key: rsa.RSAPrivateKey) -> None:
    text = account_json(key, google.url, private_key="hidden")
    found = by_account("the secret 'gcs'", lambda: account_fields(text), HTTP)
    assert "private_key" in failure(found, CredentialsError)


def test_without_a_token_file(token: Path) -> None:
    with pytest.raises(CredentialsError, match=r"GCP_OIDC .*oidc: \{gcp_token_file: …\} in the config$"):
        google_token(AUTH, UpstreamConfig(), HTTP)
