"""The container image a job names, and how a private registry is read."""

from enum import StrEnum

from pydantic import model_validator

from trainer.definitions.base import Exact
from trainer.definitions.secrets import SecretReference


class DockerAuthType(StrEnum):
    """How a private registry is read."""

    AWS_IAM = "AWS_IAM"
    AWS_OIDC = "AWS_OIDC"
    AWS_ASSUME_ROLE = "AWS_ASSUME_ROLE"
    GCP_OIDC = "GCP_OIDC"
    GCP_SERVICE_ACCOUNT_JSON = "GCP_SERVICE_ACCOUNT_JSON"
    REGISTRY_SECRET = "REGISTRY_SECRET"


class AWSIAMDockerAuth(Exact):
    """An access key of AWS."""

    access_key_secret_ref: SecretReference
    secret_access_key_secret_ref: SecretReference


class AWSOIDCDockerAuth(Exact):
    """A role of AWS, shown an OIDC token."""

    role_arn: str
    region: str


class AWSAssumeRoleDockerAuth(Exact):
    """A role of AWS, assumed by the platform's own."""

    role_arn: str
    region: str


class GCPOIDCDockerAuth(Exact):
    """A service account of Google Cloud, shown an OIDC token."""

    service_account: str
    workload_identity_provider: str


class GCPServiceAccountJSONDockerAuth(Exact):
    """A service account's key of Google Cloud."""

    service_account_json_secret_ref: SecretReference


class RegistrySecretDockerAuth(Exact):
    """`user:password` of any registry."""

    secret_ref: SecretReference


class DockerAuth(Exact):
    """One method, and exactly its block."""

    auth_method: DockerAuthType
    registry: str
    aws_iam_docker_auth: AWSIAMDockerAuth | None = None
    aws_oidc_docker_auth: AWSOIDCDockerAuth | None = None
    aws_assume_role_docker_auth: AWSAssumeRoleDockerAuth | None = None
    gcp_oidc_docker_auth: GCPOIDCDockerAuth | None = None
    gcp_service_account_json_docker_auth: GCPServiceAccountJSONDockerAuth | None = None
    registry_secret_docker_auth: RegistrySecretDockerAuth | None = None

    @model_validator(mode="after")
    def _exactly_its_block(self) -> "DockerAuth":
        wanted = f"{self.auth_method.value.lower()}_docker_auth"
        given = [f"{each.value.lower()}_docker_auth" for each in DockerAuthType]
        given = [name for name in given if getattr(self, name) is not None]
        if given != [wanted]:
            found = " and ".join(given) or "nothing"
            raise ValueError(f"auth_method {self.auth_method.value} takes {wanted} alone; found {found}")
        return self


class Image(Exact):
    """base_image is what the job was written for; this trainer runs on the host, and says so."""

    base_image: str
    docker_auth: DockerAuth | None = None
