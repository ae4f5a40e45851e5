"""The methods of `auth` by which no secret is named: who lends what a source is read with."""

import os
from collections.abc import Callable

from bdnfs.core.errors import CredentialsError
from bdnfs.origins.aws import Lent, own_keys
from bdnfs.origins.credentials import AccessToken, AwsKeys, Credential
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.sts import Sts
from bdnfs.spec.auth import WeightsAuth
from bdnfs.spec.secret import read_secret_file
from bdnfs.spec.upstream import UpstreamConfig


def aws_keys(auth: WeightsAuth, upstream: UpstreamConfig, http: HttpConfig) -> Lent:
    """Return what AWS_OIDC or AWS_ASSUME_ROLE give; CredentialsError where this machine has nothing to show."""
    if auth.auth_method == "AWS_OIDC":
        role, region = auth.aws_oidc_role_arn or "", auth.aws_oidc_region or ""
        name = f"AWS_OIDC (role {role})"
        token = _token_reader(name, upstream.oidc.aws_token_file, "aws_token_file")
        return Lent(Sts(region, upstream.aws, http).by_token(name, role, token), region)
    role, region = auth.aws_assume_role_arn or "", auth.aws_assume_role_region or ""
    name = f"AWS_ASSUME_ROLE (role {role})"
    sts = Sts(region, upstream.aws, http)
    own = own_keys(upstream.aws) or _pod_keys(sts, upstream)
    if own is None:
        raise CredentialsError(
            f"{name}: this machine has no AWS keys of its own to assume the role with; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    return Lent(sts.by_keys(name, role, own), region)


def _pod_keys(sts: Sts, upstream: UpstreamConfig) -> Credential[AwsKeys] | None:
    """Return the keys of the role that a Kubernetes pod has by the SDKs' variables, or None."""
    role, path = upstream.aws.get("AWS_ROLE_ARN"), upstream.aws.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    if not role or not path:
        return None
    name = f"AWS_ROLE_ARN (role {role})"
    return sts.by_token(name, role, _token_reader(name, path, "aws_token_file"))


def google_token(auth: WeightsAuth, upstream: UpstreamConfig, http: HttpConfig) -> Credential[AccessToken]:
    """Return the access tokens that GCP_OIDC gives; CredentialsError where there is no token file."""
    from bdnfs.origins.google import by_token

    account = auth.gcp_oidc_service_account or ""
    name = f"GCP_OIDC (service account {account})"
    token = _token_reader(name, upstream.oidc.gcp_token_file, "gcp_token_file")
    provider = auth.gcp_oidc_workload_id_provider or ""
    return by_token(name, account, provider, token, upstream.google, http)


def _token_reader(name: str, path: str | None, field: str) -> Callable[[], str]:
    """Return what reads the OIDC token each time it is to be shown: its issuer writes a new one every hour or so."""
    variable = " or AWS_WEB_IDENTITY_TOKEN_FILE" if field == "aws_token_file" else ""
    where = f"oidc: {{{field}: …}} in the config{variable}"
    if not path:
        raise CredentialsError(f"{name}: needs an OIDC token; say where its file is with {where}")

    def read() -> str:
        token = read_secret_file(os.path.expanduser(path), f"the OIDC token for {name}")
        if not token:
            found = "is no such file" if token is None else "is nothing in it"
            raise CredentialsError(f"{name}: there {found}: {path}; see to its issuer, or mend {where}")
        return token

    return read
