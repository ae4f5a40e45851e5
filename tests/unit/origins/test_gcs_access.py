import json
from pathlib import Path

import pytest

from bdnfs.core.errors import CredentialsError
from bdnfs.origins.credentials import Named
from bdnfs.origins.gcs_access import gcs_endpoint, gcs_token
from bdnfs.origins.http import HttpConfig
from bdnfs.spec.secret import Secret
from bdnfs.spec.upstream import UpstreamConfig

ACCOUNT = json.dumps(
    {"type": "service_account", "client_email": "a@b", "token_uri": "http://h/", "private_key": "hidden"}
)


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("", "https://storage.googleapis.com"),
        ("localhost:9023", "http://localhost:9023"),
        ("http://localhost:9023/", "http://localhost:9023"),
        ("https://storage.example", "https://storage.example"),
    ],
)
def test_the_emulators_variable_names_the_endpoint(host: str, endpoint: str) -> None:
    assert gcs_endpoint({"STORAGE_EMULATOR_HOST": host} if host else {}) == endpoint


def test_nothing_is_anonymous() -> None:
    assert gcs_token(UpstreamConfig(), None, None, HttpConfig()) is None


def test_the_usual_variable_names_a_service_accounts_key_and_a_secret_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text(ACCOUNT)
    upstream = UpstreamConfig(google={"GOOGLE_APPLICATION_CREDENTIALS": str(path)})
    token = gcs_token(upstream, None, None, HttpConfig())
    assert token is not None
    assert token.name == "GOOGLE_APPLICATION_CREDENTIALS"
    secret = Named("the secret 'x'", lambda: Secret(ACCOUNT))
    given = gcs_token(upstream, None, secret, HttpConfig())
    assert given is not None
    assert given.name == "the secret 'x'"


@pytest.mark.parametrize("content", [None, "", "hidden", '{"type": "authorized_user", "hidden": 1}'])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content)
    upstream = UpstreamConfig(google={"GOOGLE_APPLICATION_CREDENTIALS": str(path)})
    with pytest.raises(CredentialsError, match="GOOGLE_APPLICATION_CREDENTIALS") as caught:
        gcs_token(upstream, None, None, HttpConfig())
    assert "hidden" not in str(caught.value)
