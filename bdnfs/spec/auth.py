"""How a source is read that not everybody may read."""

import re

import msgspec

from bdnfs.core.errors import SpecError
from bdnfs.spec.fields import shown

# The fields that each method needs; a field of another method is an error.
METHODS: dict[str, tuple[str, ...]] = {
    "CUSTOM_SECRET": ("auth_secret_name",),
    "AWS_OIDC": ("aws_oidc_role_arn", "aws_oidc_region"),
    "GCP_OIDC": ("gcp_oidc_service_account", "gcp_oidc_workload_id_provider"),
    "AWS_ASSUME_ROLE": ("aws_assume_role_arn", "aws_assume_role_region"),
}
# What each of them can read; a secret can be one of any source's.
_SCHEMES = {"AWS_OIDC": ("s3",), "AWS_ASSUME_ROLE": ("s3",), "GCP_OIDC": ("gs",)}
_FITTING = {
    "s3": "use AWS_OIDC, AWS_ASSUME_ROLE or CUSTOM_SECRET",
    "gs": "use GCP_OIDC or CUSTOM_SECRET",
}
_SECRET_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}", re.ASCII)


class WeightsAuth(msgspec.Struct, frozen=True):
    """One method and exactly its fields; raises SpecError on construction if they don't fit.

    auth_method may be written in any case; an empty field counts as left out.
    """

    auth_method: str
    auth_secret_name: str | None = None
    aws_oidc_role_arn: str | None = None
    aws_oidc_region: str | None = None
    gcp_oidc_service_account: str | None = None
    gcp_oidc_workload_id_provider: str | None = None
    aws_assume_role_arn: str | None = None
    aws_assume_role_region: str | None = None

    def __post_init__(self) -> None:
        method = self.auth_method.upper()
        if method not in METHODS:
            raise SpecError(f"auth_method {shown(self.auth_method)} is not one of {', '.join(METHODS)}")
        msgspec.structs.force_setattr(self, "auth_method", method)
        for owner, fields in METHODS.items():
            for field in fields:
                if not getattr(self, field):
                    msgspec.structs.force_setattr(self, field, None)
                    if owner == method:
                        raise SpecError(
                            f"auth_method {method} needs {' and '.join(fields)}; {field} is missing"
                        )
                elif owner != method:
                    raise SpecError(
                        f"{field} belongs to auth_method {owner}, not to {method}; leave one of them out"
                    )
        if self.auth_secret_name is not None:
            check_secret_name(self.auth_secret_name)


def check_method(auth: WeightsAuth, scheme: str) -> None:
    """Raise SpecError where the method can't be used for a source of that scheme."""
    schemes = _SCHEMES.get(auth.auth_method, (scheme,))
    if scheme not in schemes:
        raise SpecError(
            f"auth_method {auth.auth_method} goes with {' and '.join(schemes)}:// sources, not with {scheme}://; "
            f"{_FITTING.get(scheme, 'use CUSTOM_SECRET with auth_secret_name')}"
        )


def is_secret_name(name: str) -> bool:
    """Return whether name can be that of a file in the secrets directory."""
    return bool(_SECRET_NAME.fullmatch(name))


def check_secret_name(name: str) -> str:
    """Return name if it can be a file in the secrets directory; raise SpecError if not."""
    if not is_secret_name(name):
        raise SpecError(
            f"auth_secret_name {shown(name)} can't name a secret: up to 253 letters, digits, '_', '-', '.', "
            "not starting with '.'; give the secret's name, never its value"
        )
    return name
