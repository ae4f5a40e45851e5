"""Credentials that fail: one line that says which source, which secret, what upstream answered, what to check."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from bdnfs.core.errors import CredentialsError
from bdnfs.origins.registry import open_origin
from bdnfs.spec.auth import WeightsAuth
from bdnfs.spec.secret import Secret, Secrets
from bdnfs.spec.source import parse_source
from bdnfs.spec.upstream import UpstreamConfig
from benchmarks.servers.hub import HubServer
from tests.commands.node import Node
from tests.credentials.servers import Answer, Asked, GoogleServer, Server
from tests.credentials.test_google import account_json
from tests.credentials.test_google import key as key

AUTH = WeightsAuth("CUSTOM_SECRET", auth_secret_name="mine")
S3_KEYS = json.dumps({"aws_access_key_id": "AKhidden", "aws_secret_access_key": "hidden"})
AZURE_KEY = json.dumps({"account_key": base64.b64encode(b"hidden").decode()})
NOWHERE = {"AWS_SHARED_CREDENTIALS_FILE": "/none", "AWS_CONFIG_FILE": "/none"}


class Refusing(Server):
    """Refuses everything, and says back what it was shown."""

    status, code = 403, "AccessDenied"

    def answer(self, asked: Asked) -> Answer:
        shown = asked.headers.get("authorization", "")
        body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>{shown}</Message></Error>"
        return Answer(self.status, body.encode(), {"x-ms-error-code": self.code})


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    with Refusing() as server:
        yield server


def refusal(text: str, upstream: UpstreamConfig, secret: str | None) -> str:
    given = {"mine": Secret(secret)} if secret else {}

    def listed() -> None:
        origin = open_origin(parse_source(text), upstream, AUTH if secret else None, Secrets("/none", given))
        try:
            list(origin.list(origin.resolve(None)))
        finally:
            origin.close()

    with pytest.raises(CredentialsError) as caught:
        listed()
    said = str(caught.value)
    for hidden in ("hidden", base64.b64encode(b"hidden").decode()):
        assert hidden not in said
    assert "\n" not in said
    return said


def at(url: str, **fields: Any) -> UpstreamConfig:
    aws = {**NOWHERE, "AWS_ENDPOINT_URL": url, "R2_ENDPOINT_URL": url, "CW_ENDPOINT_URL": url}
    google = {"STORAGE_EMULATOR_HOST": url}
    return UpstreamConfig(
        aws=aws, azure={"AZURE_STORAGE_ENDPOINT": f"{url}/account"}, google=google, **fields
    )


@pytest.mark.parametrize(
    ("source", "secret", "status", "code", "check"),
    [
        ("s3://bucket/k", S3_KEYS, 403, "AccessDenied", "s3:GetObject"),
        ("s3://bucket/k", S3_KEYS, 403, "InvalidAccessKeyId", "aws_access_key_id"),
        ("s3://bucket/k", S3_KEYS, 403, "SignatureDoesNotMatch", "aws_secret_access_key"),
        ("s3://bucket/k", S3_KEYS, 400, "ExpiredToken", "aws_session_token"),
        ("r2://account.bucket/k", S3_KEYS, 403, "SignatureDoesNotMatch", "aws_secret_access_key"),
        ("cw://bucket/k", S3_KEYS, 403, "AccessDenied", "s3:GetObject"),
        ("azure://account/container/k", AZURE_KEY, 403, "AuthenticationFailed", "account_key"),
    ],
)
def test_a_bucket_that_refuses(
    refusing: Refusing, source: str, secret: str, status: int, code: str, check: str
) -> None:
    refusing.status, refusing.code = status, code
    said = refusal(source, at(refusing.url), secret)
    for part in (source, "the secret 'mine'", f"{status} {code}", check):
        assert part in said


def test_a_web_server_that_refuses(refusing: Refusing) -> None:
    source = f"{refusing.url}/file.bin"
    for secret in ("me:hidden", "hidden"):
        said = refusal(source, UpstreamConfig(), secret)
        for part in (source, "the secret 'mine'", "403 Forbidden", "check"):
            assert part in said
    assert "auth_secret_name" in refusal(source, UpstreamConfig(), None)


def test_google_storage_that_refuses(refusing: Refusing, key: Any) -> None:
    with GoogleServer() as google:
        said = refusal("gs://bucket/k", at(refusing.url), account_json(key, f"{google.url}/token"))
    for part in ("gs://bucket/k", "the secret 'mine'", "403", "check"):
        assert part in said
    assert refusing.asked[0].headers["authorization"] == "Bearer ya29.lent-1"


def test_a_hub_that_refuses(node: Node, hub: HubServer) -> None:
    """As its user sees it: the whole line of a command, also where the hit's own question is refused."""
    spec = node.spec({"source": "hf://acme/gated", "mount_location": str(node.m), "auth_secret_name": "mine"})
    known = ("hf://acme/gated", "the secret 'mine'")
    said = node.refused(
        3, "prefetch", spec, TRUSS_SECRET_mine="hf_hidden", says=[*known, "answered 401", "make a new"]
    )
    assert "hf_hidden" not in said
    hub.token("hf_other")
    said = node.refused(
        3, "mount", spec, TRUSS_SECRET_mine="hf_other", says=[*known, "403 GatedRepo", "licence"]
    )
    assert said.count("was used") == 1
    node.refused(3, "prefetch", "hf://acme/gated", says=["acme/gated", "401 GatedRepo", "auth_secret_name"])
    node.refused(3, "prefetch", spec, says=["the secret 'mine' is neither", "bdnfs secret set mine"])
    node.refused(3, "prefetch", spec, TRUSS_SECRET_mine='{"a": 1}', says=[*known, "plain token"])


TRAP = json.dumps({"access_key_id": "AKhidden", "secret_access_key": "hidden"})


@pytest.mark.parametrize(
    ("source", "secret", "check"),
    [
        ("s3://bucket/k", TRAP, "write aws_access_key_id instead of access_key_id"),
        ("r2://account.bucket/k", TRAP, "write aws_access_key_id instead of access_key_id"),
        ("s3://bucket/k", "hidden", "JSON with aws_access_key_id"),
        ("gs://bucket/k", S3_KEYS, '"type": "service_account"'),
        ("azure://account/container/k", S3_KEYS, "account_key"),
        ("azure://account/container/k", "hidden", "account_key"),
        ("hf://org/model", S3_KEYS, "plain token"),
        ("hf://org/model", "hidden and a blank", "blanks"),
        ("https://host/file", S3_KEYS, "plain token"),
    ],
)
def test_a_secret_of_the_wrong_shape_says_the_right_one(source: str, secret: str, check: str) -> None:
    said = refusal(source, UpstreamConfig(aws=NOWHERE, stall_s=1.0), secret)
    for part in (source, "the secret 'mine'", check):
        assert part in said


def test_without_an_auth_section_that_is_what_is_said(refusing: Refusing) -> None:
    for source in ("s3://bucket/k", "azure://account/container/k", "gs://bucket/k"):
        said = refusal(source, at(refusing.url), None)
        assert "auth_secret_name" in said
        assert source in said
