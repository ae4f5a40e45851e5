"""Weights: what is delivered before the job starts, and how it may be read."""

from enum import Enum, StrEnum
from typing import Any

from pydantic import field_validator, model_validator

from trainer.definitions.base import Loose

_SCHEMES = ("hf", "s3", "gs", "azure", "r2", "cw", "https")
_UNVERSIONED = ("s3", "gs", "azure", "r2", "cw")


class WeightsAuthMethod(StrEnum):
    """How a private source is read."""

    CUSTOM_SECRET = "CUSTOM_SECRET"
    AWS_OIDC = "AWS_OIDC"
    GCP_OIDC = "GCP_OIDC"
    AWS_ASSUME_ROLE = "AWS_ASSUME_ROLE"


_FIELDS = {
    WeightsAuthMethod.CUSTOM_SECRET: ("auth_secret_name",),
    WeightsAuthMethod.AWS_OIDC: ("aws_oidc_role_arn", "aws_oidc_region"),
    WeightsAuthMethod.GCP_OIDC: ("gcp_oidc_service_account", "gcp_oidc_workload_id_provider"),
    WeightsAuthMethod.AWS_ASSUME_ROLE: ("aws_assume_role_arn", "aws_assume_role_region"),
}


class WeightsAuth(Loose):
    """One method, and exactly its fields."""

    auth_method: WeightsAuthMethod
    auth_secret_name: str | None = None
    aws_oidc_role_arn: str | None = None
    aws_oidc_region: str | None = None
    gcp_oidc_service_account: str | None = None
    gcp_oidc_workload_id_provider: str | None = None
    aws_assume_role_arn: str | None = None
    aws_assume_role_region: str | None = None

    @field_validator("auth_method", mode="before")
    @classmethod
    def _any_case(cls, method: Any) -> Any:
        return method.upper() if isinstance(method, str) and not isinstance(method, Enum) else method

    @model_validator(mode="after")
    def _exactly_its_fields(self) -> "WeightsAuth":
        for method, names in _FIELDS.items():
            for name in names:
                given = bool(getattr(self, name))
                if method is self.auth_method and not given:
                    raise ValueError(
                        f"auth_method {method.value} needs {' and '.join(names)}; {name} is missing"
                    )
                if method is not self.auth_method and given:
                    raise ValueError(
                        f"{name} belongs to auth_method {method.value}, not to {self.auth_method.value}; "
                        "leave one of them out"
                    )
        return self


class WeightsSource(Loose):
    """One source, and the absolute path at which it stands, read-only, while the job runs."""

    source: str
    mount_location: str
    auth: WeightsAuth | None = None
    auth_secret_name: str | None = None
    allow_patterns: list[str] | None = None
    ignore_patterns: list[str] | None = None

    @field_validator("source")
    @classmethod
    def _readable(cls, source: str) -> str:
        scheme, colon, rest = source.partition("://")
        if not colon or scheme not in _SCHEMES:
            raise ValueError(
                f"source {_bare(source)!r} begins with none of {', '.join(f'{each}://' for each in _SCHEMES)}; "
                "write it like hf://owner/repo@main"
            )
        if not rest or rest.startswith("/"):
            raise ValueError(f"source {_bare(source)!r} names nothing after {scheme}://")
        if "@" in rest and scheme in _UNVERSIONED:
            raise ValueError(
                f"source {_bare(source)!r}: {scheme}:// has no revisions, so there can be no '@'; "
                "only hf:// sources take @branch, @tag or @commit"
            )
        return source

    @field_validator("mount_location")
    @classmethod
    def _absolute(cls, path: str) -> str:
        if not path.startswith("/"):
            raise ValueError(f"mount_location {path!r} is relative; write it from '/' on")
        return path

    @field_validator("allow_patterns", "ignore_patterns", mode="before")
    @classmethod
    def _a_list(cls, patterns: Any) -> Any:
        if isinstance(patterns, str):
            raise ValueError(
                f"expected a list of patterns, found the text {patterns!r}; write [{patterns!r}]"
            )
        return patterns

    @model_validator(mode="after")
    def _one_secret(self) -> "WeightsSource":
        if self.auth is not None and self.auth.auth_secret_name and self.auth_secret_name:
            raise ValueError(
                "the secret is named twice, in auth and in auth_secret_name beside source; keep one of them"
            )
        return self

    @property
    def secret_name(self) -> str | None:
        """The secret that this source is read with, if it is read with one."""
        return self.auth_secret_name or (self.auth.auth_secret_name if self.auth else None)


def _bare(source: str) -> str:
    # What stands behind a '?' may be a signature, and before an '@' of a URL a password.
    head = source.partition("?")[0][:120]
    scheme, colon, rest = head.partition("://")
    if colon and scheme.lower() in ("http", "https") and "@" in rest:
        return f"{scheme}://…@{rest.rpartition('@')[2]}"
    return head
