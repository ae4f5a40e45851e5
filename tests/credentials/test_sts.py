"""Roles of AWS: against moto, which checks every signature, and against an STS that says what is to be said."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bdnfs.core.errors import BdnfsError, CredentialsError, UnavailableError, UpstreamError
from bdnfs.origins.base import Origin
from bdnfs.origins.registry import open_origin
from bdnfs.spec.auth import WeightsAuth
from bdnfs.spec.source import parse_source
from bdnfs.spec.upstream import OidcConfig, UpstreamConfig
from tests.contract.servers import child, free_port
from tests.credentials.servers import Answer, BucketServer, StsServer

ROLE = "arn:aws:iam::123456789012:role/reader"
ASSUME = WeightsAuth("AWS_ASSUME_ROLE", aws_assume_role_arn=ROLE, aws_assume_role_region="eu-west-1")
OIDC = WeightsAuth("AWS_OIDC", aws_oidc_role_arn=ROLE, aws_oidc_region="eu-west-1")
SOURCE = parse_source("s3://models/big/file.bin")
CONTENT = b"0123456789" * 1000
OWN = {"AWS_ACCESS_KEY_ID": "AKOWN", "AWS_SECRET_ACCESS_KEY": "own-hidden"}
EVERYTHING = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["s3:*", "sts:*"], "Resource": "*"}],
    }
)


class Moto:
    """moto with its checks of signatures and policies on; a user who may assume a role that may read."""

    def __init__(self, port: int) -> None:
        import boto3
        import urllib3

        self.url = f"http://127.0.0.1:{port}"

        def client(service: str, key_id: str = "x", secret: str = "x") -> Any:
            return boto3.client(
                service,
                endpoint_url=self.url,
                region_name="us-east-1",
                aws_access_key_id=key_id,
                aws_secret_access_key=secret,
            )

        iam, s3 = client("iam"), client("s3")
        iam.create_user(UserName="node")
        key = iam.create_access_key(UserName="node")["AccessKey"]
        iam.put_user_policy(UserName="node", PolicyName="p", PolicyDocument=EVERYTHING)
        iam.create_role(RoleName="reader", AssumeRolePolicyDocument=EVERYTHING)
        iam.put_role_policy(RoleName="reader", PolicyName="p", PolicyDocument=EVERYTHING)
        s3.create_bucket(Bucket="models")
        s3.put_object(Bucket="models", Key="big/file.bin", Body=CONTENT)
        self.keys = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        self._http = urllib3.PoolManager()

    def check(self, after: int = 0) -> None:
        """Check every request's signature and policies from now on, but for so many."""
        done = self._http.request("POST", f"{self.url}/moto-api/reset-auth", body=str(after).encode())
        assert done.status == 200


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    port = free_port()
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with child(argv, port):
        yield Moto(port)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "oidc"
    path.write_text("jwt-hidden\n")
    return path


def content(origin: Origin) -> bytes:
    try:
        (entry,) = origin.list(None)
        into = bytearray(entry.size)
        origin.read(None, entry, 0, memoryview(into))
        return bytes(into)
    finally:
        origin.close()


def test_moto_takes_the_signature_and_the_keys_it_lends_read_the_bucket(moto: Moto) -> None:
    moto.check()
    aws = {**moto.keys, "AWS_ENDPOINT_URL": moto.url}
    assert content(open_origin(SOURCE, UpstreamConfig(aws=aws), ASSUME)) == CONTENT


def test_moto_refuses_a_wrong_key_and_the_one_error_says_all(moto: Moto) -> None:
    moto.check()
    aws = {**moto.keys, "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_ENDPOINT_URL": moto.url}
    said = failure(open_origin(SOURCE, UpstreamConfig(aws=aws), ASSUME), CredentialsError)
    for part in ("s3://models/big/file.bin", f"AWS_ASSUME_ROLE (role {ROLE})", moto.url, "403",
                 "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"):  # fmt: skip
        assert part in said
    assert "hidden" not in said


def test_moto_lends_keys_for_a_token_and_they_read_the_bucket(moto: Moto, token: Path) -> None:
    moto.check(after=1)  # it would want the question for keys signed, too
    given = UpstreamConfig(aws={"AWS_ENDPOINT_URL": moto.url}, oidc=OidcConfig(str(token)))
    assert content(open_origin(SOURCE, given, OIDC)) == CONTENT


def test_what_is_asked_for_a_token(sts: StsServer, token: Path) -> None:
    with BucketServer(sts, CONTENT) as bucket:
        assert content(open_origin(SOURCE, upstream(sts, bucket, token), OIDC)) == CONTENT
    (asked,) = sts.asked
    assert asked.form == {
        "Action": "AssumeRoleWithWebIdentity",
        "Version": "2011-06-15",
        "RoleArn": ROLE,
        "RoleSessionName": "bdnfs",
        "WebIdentityToken": "jwt-hidden",
    }
    assert "authorization" not in asked.headers
    assert "/eu-west-1/s3/" in bucket.asked[0].headers["authorization"]


def upstream(
    sts: StsServer, bucket: BucketServer | None, token: Path | None = None, **fields: Any
) -> UpstreamConfig:
    aws = {
        **OWN,
        "AWS_ENDPOINT_URL_STS": sts.url,
        "AWS_ENDPOINT_URL_S3": bucket.url if bucket else "http://x",
    }
    return UpstreamConfig(aws=aws, oidc=OidcConfig(str(token) if token else None), **fields)


def failure(origin: Origin, kind: type[BdnfsError]) -> str:
    with pytest.raises(kind) as caught:
        list(origin.list(None))
    origin.close()
    assert type(caught.value) is kind
    return str(caught.value)


def test_keys_that_end_after_a_moment_are_fetched_anew(sts: StsServer) -> None:
    """The bucket refuses what has expired, by the clock; whoever reads sees nothing of it."""
    sts.lifetime_s = 1.0
    with BucketServer(sts, CONTENT) as bucket:
        origin = open_origin(SOURCE, upstream(sts, bucket), ASSUME)
        (entry,) = origin.list(None)
        into = memoryview(bytearray(100))
        while sts.lent < 4:
            origin.read(None, entry, 0, into)
        origin.close()


def test_keys_that_are_revoked_before_their_time_are_fetched_anew_once(
    sts: StsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bdnfs.origins.credentials._NEW_S", 0.0)
    with BucketServer(sts, CONTENT) as bucket:
        origin = open_origin(SOURCE, upstream(sts, bucket), ASSUME)
        (entry,) = origin.list(None)
        sts.revoke()
        into = bytearray(100)
        origin.read(None, entry, 50, memoryview(into))
        assert into == CONTENT[50:150]
        assert (sts.lent, bucket.refused) == (2, 1)
        origin.close()


CASES = [
    (ASSUME, 403, "AccessDenied", "trust policy"),
    (ASSUME, 403, "InvalidClientTokenId", "AWS_ACCESS_KEY_ID"),
    (ASSUME, 403, "ExpiredToken", "AWS_SESSION_TOKEN"),
    (ASSUME, 400, "ValidationError", "role's ARN"),
    (OIDC, 400, "ExpiredTokenException", "OIDC token has expired"),
    (OIDC, 400, "InvalidIdentityToken", "audience"),
    (OIDC, 403, "AccessDenied", "issuer, audience and subject"),
]


@pytest.mark.parametrize(("auth", "status", "code", "check"), CASES, ids=lambda value: str(value)[:24])
def test_a_refusal_says_source_role_answer_and_what_to_check(
    sts: StsServer, token: Path, auth: WeightsAuth, status: int, code: str, check: str
) -> None:
    sts.refusal = status, code
    said = failure(open_origin(SOURCE, upstream(sts, None, token), auth), CredentialsError)
    for part in ("s3://models/big/file.bin", f"{auth.auth_method} (role {ROLE})", f"{status} {code}", check):
        assert part in said
    assert "hidden" not in said
    assert len(sts.asked) == 1


def test_an_sts_in_trouble_is_worth_another_try(sts: StsServer, token: Path) -> None:
    for status, code in (
        (503, "ServiceUnavailable"),
        (400, "Throttling"),
        (400, "IDPCommunicationError"),
        (429, ""),
    ):
        sts.refusal = status, code
        assert str(status) in failure(open_origin(SOURCE, upstream(sts, None, token), OIDC), UnavailableError)


def test_something_else_than_an_sts(sts: StsServer, token: Path) -> None:
    sts.refusal = 200, "x"
    said = failure(open_origin(SOURCE, upstream(sts, None, token), OIDC), UpstreamError)
    assert "AWS_ENDPOINT_URL_STS" in said
    sts.refusal = 302, "<&"
    assert "302" in failure(open_origin(SOURCE, upstream(sts, None, token), OIDC), UpstreamError)


BOMB = b'<!DOCTYPE a [<!ENTITY a "hidden">' + b"".join(
    f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">'.encode() for n in range(12)
)
WHOLE = "<A><AccessKeyId>x</AccessKeyId><SecretAccessKey>hidden</SecretAccessKey><SessionToken>y</SessionToken>{}</A>"
HOSTILE = (
    b"", b"<", b"\xff\xfe", b"{}", b"<a>" * 20_000, BOMB + b"]><A><AccessKeyId>&l;</AccessKeyId></A>",
    WHOLE.format("").encode(), *(
        WHOLE.format(f"<Expiration>{each}</Expiration>").encode()
        for each in ("", "hidden", "0001-01-01T00:00:00Z", "99999-01-01", "2001-01-01T00:00:00Z"))
)  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: repr(body[-48:]))
@pytest.mark.parametrize("status", [200, 400])
def test_whatever_an_sts_answers_is_one_error(sts: StsServer, token: Path, status: int, body: bytes) -> None:
    sts.answer = lambda asked: Answer(status, body)  # type: ignore[method-assign]
    said = failure(open_origin(SOURCE, upstream(sts, None, token), OIDC), UpstreamError)
    assert "hidden" not in said


def test_what_this_machine_lacks_is_said_at_once(sts: StsServer, tmp_path: Path) -> None:
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": "/none", "AWS_CONFIG_FILE": "/none"}
    with pytest.raises(CredentialsError, match=r"s3://models/big/file.bin: AWS_ASSUME_ROLE .*AWS_PROFILE"):
        open_origin(SOURCE, UpstreamConfig(aws=nowhere), ASSUME)
    with pytest.raises(
        CredentialsError, match=r"AWS_OIDC .*oidc: \{aws_token_file: …\}.*AWS_WEB_IDENTITY_TOKEN_FILE"
    ):
        open_origin(SOURCE, UpstreamConfig(), OIDC)
    missing = UpstreamConfig(oidc=OidcConfig(str(tmp_path / "none")))
    assert "no such file" in failure(open_origin(SOURCE, missing, OIDC), CredentialsError)


def test_the_token_is_read_anew_for_each_exchange(sts: StsServer, token: Path) -> None:
    sts.lifetime_s = 1.0
    with BucketServer(sts, CONTENT) as bucket:
        origin = open_origin(SOURCE, upstream(sts, bucket, token), OIDC)
        (entry,) = origin.list(None)
        token.write_text("renewed")
        while sts.asked[-1].form["WebIdentityToken"] != "renewed":
            origin.read(None, entry, 0, memoryview(bytearray(10)))
        origin.close()


def test_a_pods_own_role_assumes_another_one(sts: StsServer, token: Path) -> None:
    own = {"AWS_ROLE_ARN": "arn:own", "AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_CONFIG_FILE": "/none"}
    with BucketServer(sts, CONTENT) as bucket:
        ends = {
            "AWS_ENDPOINT_URL_STS": sts.url,
            "AWS_ENDPOINT_URL_S3": bucket.url,
            "AWS_ROLE_SESSION_NAME": "pod-7",
        }
        given = UpstreamConfig(aws={**own, **ends, "AWS_SHARED_CREDENTIALS_FILE": "/none"})
        assert content(open_origin(SOURCE, given, ASSUME)) == CONTENT
    first, second = sts.asked
    assert (first.form["Action"], first.form["RoleArn"]) == ("AssumeRoleWithWebIdentity", "arn:own")
    assert (second.form["Action"], second.form["RoleArn"]) == ("AssumeRole", ROLE)
    assert second.headers["x-amz-security-token"] == "sts-session-1"
    assert second.form["RoleSessionName"] == "pod-7"
