"""Credentials and endpoint for S3: from a secret, the AWS_* variables, or a profile's files."""

import configparser
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from bdnfs.core.errors import UNREADABLE, CredentialsError
from bdnfs.origins.credentials import AwsKeys, Credential, Fixed, Named, Reread

DEFAULT_REGION = "us-east-1"
# Variables that obstore turns into credentials by itself, by its names for them.
ROLE_OPTIONS = {
    "AWS_ROLE_ARN": "role_arn",
    "AWS_ROLE_SESSION_NAME": "role_session_name",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "web_identity_token_file",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "container_credentials_relative_uri",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "container_credentials_full_uri",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "container_authorization_token_file",
}
_ROLES = ("AWS_WEB_IDENTITY_TOKEN_FILE", *(name for name in ROLE_OPTIONS if name.endswith("_URI")))
# A profile with one of these gets its keys by means that only the AWS SDK has.
_SDK_ONLY = ("role_arn", "sso_session", "sso_start_url", "credential_process", "login_session")


@dataclass(frozen=True)
class AwsAccess:
    """How a bucket is reached; repr shows no key.

    keys:     what requests are signed with, or None
    role:     options for obstore that get keys by a role, empty without one
    instance: whether the machine's own role may be asked for when anonymous access is refused
    """

    region: str
    endpoint: str | None
    keys: Credential[AwsKeys] | None
    role: Mapping[str, str]
    requester_pays: bool
    instance: bool

    def __repr__(self) -> str:
        return f"AwsAccess(region={self.region!r}, endpoint={self.endpoint!r})"


@dataclass(frozen=True)
class Lent:
    """Keys that an exchange gives, and the region that goes with them."""

    keys: Credential[AwsKeys]
    region: str


def aws_access(variables: Mapping[str, str], given: Named | Lent | None = None) -> AwsAccess:
    """Return what variables (AWS_*) and what was given for the source, which goes first, make together.

    Raises CredentialsError for a secret of the wrong shape or a profile that can't be used.
    """
    fields = _secret_fields(given) if isinstance(given, Named) else {}
    role = {option: variables[name] for name, option in ROLE_OPTIONS.items() if variables.get(name)}
    if not any(variables.get(name) for name in _ROLES):
        role = {}
    own = _environment_keys(variables)
    profile: dict[str, str] = {}
    if given is None and (variables.get("AWS_PROFILE") or not (own or role)):
        profile = _profile(variables)
    keys: Credential[AwsKeys] | None
    if isinstance(given, Lent):
        keys = given.keys
    elif given is not None:
        keys = Reread(given.name, functools.partial(_secret_keys, given))
    elif own:
        keys = Fixed(own, "AWS_ACCESS_KEY_ID")
    else:
        keys = _profile_keys(variables, profile)
    endpoint = (
        fields.get("aws_endpoint_url")
        or variables.get("AWS_ENDPOINT_URL_S3")
        or variables.get("AWS_ENDPOINT_URL")
        or profile.get("endpoint_url")
    )
    region = given.region if isinstance(given, Lent) else fields.get("aws_region")
    region = region or variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    disabled = variables.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
    return AwsAccess(
        region=region or profile.get("region") or DEFAULT_REGION,
        endpoint=endpoint.rstrip("/") if endpoint else None,
        keys=keys,
        role={} if keys else role,
        requester_pays=variables.get("AWS_REQUEST_PAYER", "").lower() in ("requester", "true"),
        instance=not (keys or role or endpoint or disabled),
    )


def own_keys(variables: Mapping[str, str]) -> Credential[AwsKeys] | None:
    """Return the keys of this machine itself, from the variables or a profile, or None."""
    own = _environment_keys(variables)
    return Fixed(own, "AWS_ACCESS_KEY_ID") if own else _profile_keys(variables, _profile(variables))


def _environment_keys(variables: Mapping[str, str]) -> AwsKeys | None:
    return _keys_in({name.lower(): value for name, value in variables.items()})


def _profile_keys(variables: Mapping[str, str], profile: Mapping[str, str]) -> Credential[AwsKeys] | None:
    found = _keys_in(profile)
    if found is None:
        return None
    # Many a tool writes short-lived keys into these files, again and again.
    return Reread("the AWS profile", lambda: _keys_in(_profile(variables)) or found)


def _secret_keys(secret: Named) -> AwsKeys:
    fields = _secret_fields(secret)
    return AwsKeys(
        fields["aws_access_key_id"], fields["aws_secret_access_key"], fields.get("aws_session_token") or None
    )


def _keys_in(fields: Mapping[str, str]) -> AwsKeys | None:
    key_id, secret = fields.get("aws_access_key_id"), fields.get("aws_secret_access_key")
    return AwsKeys(key_id, secret, fields.get("aws_session_token") or None) if key_id and secret else None


def _secret_fields(secret: Named) -> dict[str, str]:
    expected = (
        f"{secret.name}: a secret for s3://, r2:// or cw:// is JSON with aws_access_key_id, "
        "aws_secret_access_key, aws_region and, if there is one, aws_session_token"
    )
    try:
        fields = json.loads(secret.read().value)
    except UNREADABLE:
        raise CredentialsError(f"{expected}; the one given is not JSON") from None
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise CredentialsError(f"{expected}; the one given is not a mapping of texts")
    missing = [name for name in ("aws_access_key_id", "aws_secret_access_key") if not fields.get(name)]
    if missing:
        bare = [name for name in missing if name.removeprefix("aws_") in fields]
        hint = f"; write {bare[0]} instead of {bare[0].removeprefix('aws_')}" if bare else ""
        raise CredentialsError(f"{expected}; {' and '.join(missing)} is missing{hint}")
    return fields


def _profile(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of the profile chosen, from the files of the AWS command line; {} without any."""
    name = variables.get("AWS_PROFILE") or "default"
    fields: dict[str, str] = {}
    for variable, default, section in (
        ("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
    ):
        path = os.path.expanduser(variables.get(variable) or default)
        parser = configparser.RawConfigParser(strict=False)
        try:
            with open(path, encoding="utf-8") as file:
                parser.read_file(file)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise CredentialsError(
                f"reading AWS profile {name!r}: {path} can't be read ({type(error).__name__}); "
                "mend it, or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        if parser.has_section(section):
            fields |= dict(parser.items(section))
    if not fields and variables.get("AWS_PROFILE"):
        raise CredentialsError(
            f"AWS profile {name!r} is in none of the files of the AWS command line; check AWS_PROFILE"
        )
    if not fields.get("aws_access_key_id") and any(fields.get(key) for key in _SDK_ONLY):
        raise CredentialsError(
            f"AWS profile {name!r} holds no keys but a role or a login, which only the AWS command "
            "line can use; "
            f"run: eval $(aws configure export-credentials --profile {name} --format env)"
        )
    return fields
