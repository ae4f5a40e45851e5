"""Credentials and endpoint for Azure Blob Storage: from a secret, or the AZURE_* variables."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bdnfs.core.errors import UNREADABLE, CredentialsError
from bdnfs.origins.credentials import Credential, Fixed

# Variables that obstore turns into tokens by itself, by its names for them: a service principal's, or a pod's.
_ROLE_OPTIONS = {
    "AZURE_CLIENT_ID": "client_id",
    "AZURE_CLIENT_SECRET": "client_secret",
    "AZURE_TENANT_ID": "tenant_id",
    "AZURE_AUTHORITY_HOST": "authority_host",
    "AZURE_FEDERATED_TOKEN_FILE": "federated_token_file",
}
_KEY_VARIABLES = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_KEY")
_ACCOUNT_VARIABLES = ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")


class AzureKey(NamedTuple):
    """What requests show: an account's key or a shared access signature. Shown as `***`."""

    kind: str  # as obstore names it: "access_key" or "sas_token"
    value: str

    def __repr__(self) -> str:
        return "***"


@dataclass(frozen=True)
class AzureAccess:
    """How a container is reached; repr shows no key.

    key:  what requests show, or None
    role: options for obstore that get tokens, empty without any
    """

    account: str
    endpoint: str
    key: Credential[AzureKey] | None
    role: Mapping[str, str]

    def __repr__(self) -> str:
        return f"AzureAccess(account={self.account!r}, endpoint={self.endpoint!r})"


def azure_access(
    account: str, variables: Mapping[str, str], given: Credential[AzureKey] | None = None
) -> AzureAccess:
    """Return what variables (AZURE_*) and the source's own key, which goes first, make together.

    Variables are about the account that AZURE_STORAGE_ACCOUNT names, about every account without it.
    Raises CredentialsError for a key that can't be one.
    """

    def first(names: tuple[str, ...]) -> tuple[str, str] | None:
        return next(((name, variables[name]) for name in names if variables.get(name)), None)

    named = first(_ACCOUNT_VARIABLES)
    if named and named[1] != account:
        variables = {name: value for name, value in variables.items() if name in _ROLE_OPTIONS}
    key, sas, endpoint = (
        first(_KEY_VARIABLES),
        variables.get("AZURE_STORAGE_SAS_TOKEN"),
        variables.get("AZURE_STORAGE_ENDPOINT"),
    )
    if given is None and key:
        given = Fixed(_account_key(key[1], key[0]), key[0])
    elif given is None and sas:
        given = Fixed(AzureKey("sas_token", sas.lstrip("?")), "AZURE_STORAGE_SAS_TOKEN")
    role = {option: variables[name] for name, option in _ROLE_OPTIONS.items() if variables.get(name)}
    whole = {"client_id", "tenant_id"} <= role.keys() and role.keys() & {
        "client_secret",
        "federated_token_file",
    }
    return AzureAccess(
        account=account,
        endpoint=endpoint.rstrip("/") if endpoint else own_endpoint(account),
        key=given,
        role=role if whole and given is None else {},
    )


def own_endpoint(account: str) -> str:
    """Return where Azure's public cloud serves account."""
    return f"https://{account}.blob.core.windows.net"


def azure_key(text: str, name: str) -> AzureKey:
    """Return what a secret for azure:// holds; CredentialsError, with none of it, if that is no key.

    name: what errors call the secret
    """
    expected = (
        f'{name}: a secret for azure:// is JSON such as {{"account_key": "…"}}, or with sas_token instead'
    )
    try:
        fields = json.loads(text)
    except UNREADABLE:
        raise CredentialsError(f"{expected}; the one given is not JSON") from None
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise CredentialsError(f"{expected}; the one given is not a mapping of texts")
    if fields.get("account_key"):
        return _account_key(fields["account_key"], f"{name}: account_key")
    if fields.get("sas_token"):
        return AzureKey("sas_token", fields["sas_token"].lstrip("?"))
    raise CredentialsError(f"{expected}; the one given has neither")


def _account_key(value: str, name: str) -> AzureKey:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise CredentialsError(
            f"{name} is not the key of a storage account, which is Base64; copy it again from the account"
        ) from None
    return AzureKey("access_key", value)
