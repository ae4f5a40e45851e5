import base64
import json

import pytest

from bdnfs.core.errors import CredentialsError
from bdnfs.origins.azure_access import AzureAccess, AzureKey, azure_access, azure_key
from bdnfs.origins.credentials import Fixed
from bdnfs.spec.upstream import AZURE_VARIABLES, UpstreamConfig, azure_variables

KEY = base64.b64encode(b"hidden").decode()
PRINCIPAL = {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_SECRET": "hidden"}


def shown(access: AzureAccess) -> tuple[str, str] | None:
    return tuple(access.key.current()) if access.key else None


def test_nothing_is_anonymous_at_azures_own_endpoint() -> None:
    access = azure_access("acct", {})
    assert (access.endpoint, access.key, access.role) == ("https://acct.blob.core.windows.net", None, {})


@pytest.mark.parametrize(
    "name", ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY"]
)
def test_each_usual_variable_gives_the_accounts_key(name: str) -> None:
    assert shown(azure_access("acct", {name: KEY, **PRINCIPAL})) == ("access_key", KEY)
    assert not azure_access("acct", {name: KEY, **PRINCIPAL}).role


def test_a_signature_is_taken_without_its_question_mark() -> None:
    assert shown(azure_access("acct", {"AZURE_STORAGE_SAS_TOKEN": "?sv=1&sig=x"})) == (
        "sas_token",
        "sv=1&sig=x",
    )


def test_the_sources_own_key_goes_first() -> None:
    given = Fixed(AzureKey("access_key", "own"), "the secret")
    assert shown(azure_access("acct", {"AZURE_STORAGE_KEY": KEY}, given)) == ("access_key", "own")


def test_variables_are_about_the_account_they_name() -> None:
    variables = {
        "AZURE_STORAGE_KEY": KEY,
        "AZURE_STORAGE_ENDPOINT": "http://h/acct/",
        "AZURE_STORAGE_ACCOUNT": "acct",
    }
    assert azure_access("acct", variables).endpoint == "http://h/acct"
    other = azure_access("other", {**variables, **PRINCIPAL})
    assert other.endpoint == "https://other.blob.core.windows.net"
    assert other.key is None
    # A principal is about a directory, not about an account.
    assert other.role["client_id"] == "c"


def test_half_a_principal_is_none() -> None:
    assert azure_access("acct", {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t"}).role == {}
    federated = {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_FEDERATED_TOKEN_FILE": "/f"}
    assert azure_access("acct", federated).role["federated_token_file"] == "/f"


@pytest.mark.parametrize(
    "text",
    [
        "hidden",
        "[]",
        '"hidden"',
        "{}",
        '{"account_key": 7}',
        '{"account_key": "hidden!"}',
        '{"key": "hidden"}',
        "[" * 9999,
    ],
)
def test_a_secret_of_the_wrong_shape_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(CredentialsError, match="the secret 'x'") as caught:
        azure_key(text, "the secret 'x'")
    assert "hidden" not in str(caught.value)
    assert "account_key" in str(caught.value)


def test_a_secret_is_a_key_or_a_signature() -> None:
    assert azure_key(json.dumps({"account_key": KEY}), "x") == ("access_key", KEY)
    assert azure_key('{"sas_token": "?sv=1"}', "x") == ("sas_token", "sv=1")


def test_no_key_is_shown() -> None:
    access = azure_access("acct", {"AZURE_STORAGE_KEY": KEY, **PRINCIPAL})
    upstream = UpstreamConfig(azure={"AZURE_STORAGE_KEY": KEY})
    for text in (
        repr(access),
        repr(access.key),
        repr(azure_key(json.dumps({"account_key": KEY}), "x")),
        str(upstream),
    ):
        assert KEY not in text
        assert "hidden" not in text


def test_what_is_set_and_known_is_taken() -> None:
    environment = dict.fromkeys(AZURE_VARIABLES, "x") | {"AZURE_CLIENT_ID": "", "OTHER": "x"}
    assert azure_variables(environment) == {
        name: "x" for name in AZURE_VARIABLES if name != "AZURE_CLIENT_ID"
    }
