import json
from pathlib import Path

import pytest

from bdnfs.core.errors import CredentialsError
from bdnfs.origins.aws import AwsAccess, aws_access
from bdnfs.origins.credentials import AwsKeys, Named
from bdnfs.spec.secret import Secret

KEYS = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK"}


def named(text: str) -> Named:
    return Named("the secret 's3_key'", lambda: Secret(text))


def keys(access: AwsAccess) -> tuple[str, str, str | None] | None:
    return None if access.keys is None else tuple(access.keys.current())


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    return {
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
    }


def test_nothing_given_is_anonymous_at_amazon(nowhere: dict[str, str]) -> None:
    access = aws_access(nowhere)
    assert (keys(access), access.role, access.endpoint, access.region) == (None, {}, None, "us-east-1")
    assert access.instance
    assert not aws_access({**nowhere, "AWS_EC2_METADATA_DISABLED": "true"}).instance
    assert not aws_access({**nowhere, "AWS_ENDPOINT_URL": "http://x"}).instance


def test_variables() -> None:
    access = aws_access(
        {
            **KEYS,
            "AWS_SESSION_TOKEN": "T",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_ENDPOINT_URL": "http://all/",
            "AWS_ENDPOINT_URL_S3": "http://s3/",
            "AWS_REQUEST_PAYER": "requester",
        },
        None,
    )
    assert keys(access) == ("AK", "SK", "T")
    assert (access.region, access.endpoint, access.requester_pays) == ("eu-west-1", "http://s3", True)
    assert "SK" not in repr((access, access.keys, AwsKeys(*keys(access) or ())))
    assert not access.instance


def test_roles_are_passed_on_where_no_keys_are(nowhere: dict[str, str]) -> None:
    role = {"AWS_ROLE_ARN": "arn:x", "AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}
    assert aws_access({**nowhere, **role}).role == {
        "role_arn": "arn:x",
        "web_identity_token_file": "/token",
    }
    assert aws_access({**nowhere, **role, **KEYS}).role == {}
    assert aws_access({**nowhere, "AWS_ROLE_ARN": "arn:x"}).role == {}


def test_a_profile(nowhere: dict[str, str]) -> None:
    Path(nowhere["AWS_SHARED_CREDENTIALS_FILE"]).write_text(
        "[default]\naws_access_key_id = D\naws_secret_access_key = "
        "DS%\n[p]\naws_access_key_id=P\naws_secret_access_key=PS\n"
    )
    Path(nowhere["AWS_CONFIG_FILE"]).write_text("[profile p]\nregion = eu-north-1\nendpoint_url = http://p\n")
    assert keys(aws_access(nowhere)) == ("D", "DS%", None)
    access = aws_access({**nowhere, "AWS_PROFILE": "p"})
    assert (keys(access), access.region, access.endpoint) == (("P", "PS", None), "eu-north-1", "http://p")
    assert keys(aws_access({**nowhere, **KEYS})) == ("AK", "SK", None)
    with pytest.raises(CredentialsError, match="'q'"):
        aws_access({**nowhere, "AWS_PROFILE": "q"})


def test_a_profile_that_only_the_sdk_can_use_is_said_to_be_one(nowhere: dict[str, str]) -> None:
    Path(nowhere["AWS_CONFIG_FILE"]).write_text("[default]\nsso_session = corp\n")
    with pytest.raises(CredentialsError, match="export-credentials"):
        aws_access(nowhere)
    Path(nowhere["AWS_CONFIG_FILE"]).write_text("no section\n")
    with pytest.raises(CredentialsError, match="can't be read"):
        aws_access(nowhere)


def test_a_secret_goes_before_variables() -> None:
    secret = {"aws_access_key_id": "SAK", "aws_secret_access_key": "SSK", "aws_region": "ap-south-1"}
    access = aws_access(
        {**KEYS, "AWS_SESSION_TOKEN": "T", "AWS_REGION": "eu-west-1"}, named(json.dumps(secret))
    )
    assert keys(access) == ("SAK", "SSK", None)
    assert access.region == "ap-south-1"
    del secret["aws_region"]
    assert aws_access({}, named(json.dumps(secret))).region == "us-east-1"


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("hidden", "not JSON"),
        ('["hidden"]', "not a mapping"),
        ('{"aws_access_key_id": 7, "x": "hidden"}', "not a mapping of texts"),
        ('{"aws_access_key_id": "hidden"}', "aws_secret_access_key is missing"),
        (
            '{"access_key_id": "hidden", "secret_access_key": "hidden"}',
            "write aws_access_key_id instead of access_key_id",
        ),
    ],
)
def test_a_secret_of_another_shape_is_explained_without_being_shown(secret: str, said: str) -> None:
    with pytest.raises(CredentialsError, match=said) as caught:
        aws_access({}, named(secret))
    assert "hidden" not in str(caught.value)
    assert "the secret 's3_key'" in str(caught.value)
