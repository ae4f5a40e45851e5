"""How upstream is reached: endpoints, tokens, proxies, certificates, taken from the usual variables."""

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from bdnfs.core.errors import SpecError
from bdnfs.spec.fields import shown
from bdnfs.spec.secret import Secret, header_safe, read_secret_file
from bdnfs.spec.source import redacted

HUB_ENDPOINT = "https://huggingface.co"
# The AWS SDKs' reference of environment variables, as far as it concerns reading S3; and where others speak it.
AWS_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_EC2_METADATA_DISABLED", "AWS_REQUEST_PAYER"),
    *("AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    *("AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
    *("R2_ENDPOINT_URL", "CW_ENDPOINT_URL"),
)
# Those of Azure's command line and SDKs that obstore knows, too.
AZURE_VARIABLES = (
    *("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT"),
    *(
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
    ),
    *("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "AZURE_AUTHORITY_HOST"),
    "AZURE_FEDERATED_TOKEN_FILE",
)
# Endpoints that stand in for Google's (the first two are gcloud's own), and where credentials are.
GOOGLE_VARIABLES = (
    *("CLOUDSDK_API_ENDPOINT_OVERRIDES_STS", "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS"),
    *("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST", "NO_GCE_CHECK"),
)
# requests reads the first two in this order, OpenSSL the third.
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_HIDDEN = ("aws", "azure", "proxies")


class OidcConfig(msgspec.Struct, frozen=True):
    """The files of the OIDC tokens by which this machine shows who it is; whoever issues them renews them.

    One each, because the audience that AWS wants is not Google's.
    """

    aws_token_file: str | None = None
    gcp_token_file: str | None = None


class UpstreamConfig(msgspec.Struct, frozen=True):
    """How origins are reached. Its repr shows no value that may be secret.

    hf_endpoint: the Hub's URL, without a slash at its end
    hf_token:    sent to hf_endpoint alone
    hf_login:    the file that hf_token came from, to be read again; None where it came from elsewhere
    aws:         the AWS_* variables that were set, by their names
    azure:       the same of AZURE_VARIABLES
    google:      the same of GOOGLE_VARIABLES
    oidc:        where the tokens for AWS_OIDC and GCP_OIDC are
    proxies:     proxy URLs by scheme (`http`, `https`, `all`), and under `no` what needs none (NO_PROXY)
    ca_bundle:   path of a PEM file to trust instead of the system's, or None
    fetches_max: chunks in flight
    stall_s:     seconds without a byte after which a connection counts as stalled
    attempts:    tries for each request, the first included
    """

    hf_endpoint: str = HUB_ENDPOINT
    hf_token: Secret | None = None
    hf_login: str | None = None
    aws: Mapping[str, str] = {}
    azure: Mapping[str, str] = {}
    google: Mapping[str, str] = {}
    oidc: OidcConfig = OidcConfig()
    proxies: Mapping[str, str] = {}
    ca_bundle: str | None = None
    fetches_max: int = 16
    stall_s: float = 30.0
    attempts: int = 5

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"UpstreamConfig({fields})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        values = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return [(name, dict.fromkeys(each, Secret("")) if name in _HIDDEN else each) for name, each in values]


def hub_endpoint(value: str, where: str) -> str:
    """Return a Hub's URL in canonical form; raise SpecError naming where it is set if it is none."""
    from urllib.parse import urlsplit  # not on the way of a hit with no endpoint set

    url = value.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        usable = usable and not (
            parts.query or parts.fragment or parts.password or any(map(str.isspace, url))
        )
    except ValueError:
        usable = False
    if not usable:
        raise SpecError(
            f"{where}: {shown(redacted(value))} is not a URL such as {HUB_ENDPOINT}; mend or unset it"
        )
    return url


def hub_token(environment: Mapping[str, str], home: str) -> Secret | None:
    """Return the Hub's token by huggingface_hub's rules: HF_TOKEN, else the file of a login; or None.

    Raises CredentialsError for a token that no header can carry.
    """
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        token = header_safe(environment.get(name, ""), name)
        if token:
            return token
    path = hub_token_file(environment, home)
    return read_hub_token(path) if path else None


def hub_token_file(environment: Mapping[str, str], home: str) -> str | None:
    """Return where the token of a login is, which need not be there; None where another one goes before it.

    HF_HUB_DISABLE_IMPLICIT_TOKEN leaves the file of a login aside.
    """
    given = any(environment.get(name, "").strip() for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    if given or is_true(environment.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
        return None
    cache = environment.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    hub = _expanded(environment.get("HF_HOME"), home) or os.path.join(cache, "huggingface")
    return _expanded(environment.get("HF_TOKEN_PATH"), home) or os.path.join(hub, "token")


def read_hub_token(path: str) -> Secret | None:
    """Return the token of a login as it is now, None without one; raises as `hub_token` does."""
    return header_safe(read_secret_file(path, "the Hub's token") or "", path)


def aws_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the AWS_* variables that are set and not empty."""
    return {name: environment[name] for name in AWS_VARIABLES if environment.get(name)}


def azure_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the AZURE_VARIABLES that are set and not empty."""
    return {name: environment[name] for name in AZURE_VARIABLES if environment.get(name)}


def google_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return those of GOOGLE_VARIABLES that are set and not empty."""
    return {name: environment[name] for name in GOOGLE_VARIABLES if environment.get(name)}


def oidc_config(files: Mapping[str, str], environment: Mapping[str, str]) -> OidcConfig:
    """Return where OIDC tokens are: as the config says (files), else where the AWS SDKs look."""
    aws = files.get("aws_token_file") or environment.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    return OidcConfig(aws or None, files.get("gcp_token_file"))


def proxy_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return proxies by `http`, `https`, `all`, `no`; the lower-case variable wins, even if it is empty."""
    found: dict[str, str] = {}
    for key in ("http", "https", "all", "no"):
        lower, upper = f"{key}_proxy", f"{key.upper()}_PROXY"
        # As a CGI program HTTP_PROXY would be the client's header "Proxy" (httpoxy).
        value = environment.get(lower, "" if key == "http" and "REQUEST_METHOD" in environment else None)
        value = environment.get(upper, "") if value is None else value
        if value.strip():
            found[key] = value.strip()
    return found


def ca_bundle(environment: Mapping[str, str]) -> str | None:
    """Return the PEM file that the usual variables name, or None."""
    return next((environment[name] for name in _CA_VARIABLES if environment.get(name)), None)


def is_true(value: str | None) -> bool:
    """Return whether an environment variable's value switches something on, as huggingface_hub reads it."""
    return (value or "").strip().upper() in ("1", "ON", "YES", "TRUE")


def _expanded(path: str | None, home: str) -> str | None:
    if not path:
        return None
    return os.path.join(home, path[2:]) if path.startswith("~/") else path
