"""Credentials and endpoint for Google Cloud Storage: from the source's auth, or Google's variables."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from bdnfs.core.errors import UNREADABLE, BdnfsError, CredentialsError, UnavailableError, UpstreamError
from bdnfs.origins.credentials import AccessToken, Credential, Exchanged, Named, Temporary
from bdnfs.origins.gcs_client import GOOGLE
from bdnfs.origins.google import READING, account_fields, by_account
from bdnfs.origins.http import CONNECT_TIMEOUT_S, HttpClient, HttpConfig
from bdnfs.origins.lending import google_token
from bdnfs.spec.auth import WeightsAuth
from bdnfs.spec.secret import Secret, read_secret_file
from bdnfs.spec.upstream import UpstreamConfig

T = TypeVar("T")

_ACCOUNT_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_METADATA_HOST = "metadata.google.internal"
_METADATA_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
# It is on the machine itself.
_METADATA_STALL_S = 3.0
_ANSWER_BYTES_MAX = 64 << 10


def gcs_endpoint(variables: Mapping[str, str]) -> str:
    """Return the URL of the API, without a slash at its end: STORAGE_EMULATOR_HOST's, which may lack http://."""
    host = variables.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    if not host:
        return GOOGLE
    return host if host.startswith(("http://", "https://")) else f"http://{host}"


def gcs_token(
    upstream: UpstreamConfig,
    auth: WeightsAuth | None,
    secret: Named | None,
    http: HttpConfig,
    scope: str = READING,
) -> Credential[AccessToken] | None:
    """Return the tokens that requests show; None where nothing was given. scope: of a service account's tokens.

    In this order: the secret (a service account's JSON key), GCP_OIDC, the key that GOOGLE_APPLICATION_CREDENTIALS
    names. Raises CredentialsError for what can't be used.
    """
    if auth is not None and auth.auth_method == "GCP_OIDC":
        return google_token(auth, upstream, http)
    path = upstream.google.get(_ACCOUNT_FILE)
    if secret is None and path:
        secret = Named(_ACCOUNT_FILE, lambda: _file(path))
    if secret is None:
        return None
    given = secret

    def fields() -> Mapping[str, str]:
        try:
            return account_fields(given.read().value)
        except CredentialsError as error:
            said = str(error)
            raise CredentialsError(said if given.name in said else f"{given.name}: {said}") from None

    return by_account(given.name, fields, http, scope)


def machine_token(variables: Mapping[str, str], http: HttpConfig) -> Credential[AccessToken] | None:
    """Return the tokens of the service account that a machine of Google's runs as; None where none is asked for.

    https://cloud.google.com/compute/docs/metadata/querying-metadata: plain HTTP, by no proxy, to a name that only
    such a machine knows. Asking it raises CredentialsError on any other.
    """
    if variables.get("NO_GCE_CHECK", "").lower() == "true" or gcs_endpoint(variables) != GOOGLE:
        return None
    url = f"http://{variables.get('GCE_METADATA_HOST') or _METADATA_HOST}{_METADATA_PATH}"
    near = HttpConfig(stall_s=min(http.stall_s, _METADATA_STALL_S))
    name = "the machine's own service account"
    doing = f"asking for a token of {name}"

    def exchange() -> Temporary[AccessToken]:
        try:
            with (
                contextlib.closing(HttpClient(near)) as client,
                client.open("GET", url, doing, {"Metadata-Flavor": "Google"}, follow=False) as reply,
            ):
                found = json.loads(reply.content(_ANSWER_BYTES_MAX)) if reply.status == 200 else {}
            expires_s = time.time() + float(found["expires_in"])
            return Temporary(AccessToken(str(found["access_token"]), expires_s), expires_s)
        except (UpstreamError, *UNREADABLE, KeyError, TypeError):
            raise CredentialsError(f"{doing}: there is none; name a secret with auth_secret_name") from None

    return Exchanged(name, exchange, 2 * near.stall_s + CONNECT_TIMEOUT_S)


def _file(path: str) -> Secret:
    found = read_secret_file(path, "the key of a service account")
    if found is None:
        raise CredentialsError(f"{_ACCOUNT_FILE}: there is no file {path}; mend or unset it")
    return Secret(found)


class Showing:
    """What requests to a bucket show.

    token:   what they show, None for what everybody may read
    machine: what they show from then on where everybody is refused
    """

    def __init__(
        self, token: Credential[AccessToken] | None, machine: Credential[AccessToken] | None
    ) -> None:
        self._token, self._machine = token, machine

    def do(self, act: Callable[[str | None], T], *, again: bool) -> T:
        """Do act with it. again: once more where that is refused and there is another token by now."""
        token = self._token
        used = token.current() if token else None
        try:
            return act(used.token if used else None)
        except CredentialsError as refused:
            if token is None or used is None:
                return self._as_machine(act, refused)
            if not (again and token.refused(used)):
                raise
        return act(token.current().token)

    def _as_machine(self, act: Callable[[str | None], T], refused: CredentialsError) -> T:
        """Do act with the machine's own token, and all that follows unless that is refused, too."""
        if self._machine is None:
            raise refused
        try:
            token = self._machine.current().token
        except (CredentialsError, UnavailableError):
            raise refused from None
        try:
            found = act(token)
        except CredentialsError:
            raise
        except BdnfsError:
            self._token = self._machine
            raise
        self._token = self._machine
        return found
