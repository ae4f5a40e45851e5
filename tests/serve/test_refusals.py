"""What the service refuses: who may not read, what may not be read, and that nothing but objects can be."""

import json
import time
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import msgspec
import pytest
from blake3 import blake3

from bdnfs.mirror.directory import DirectoryStore
from tests.serve.served import FILES, KEYS, Served, fill
from tests.serve.signing import fetch, signed


class Mirrored:
    """One service of two tenants, what `resolve` said to each, and the target of a manifest of each."""

    def __init__(self, service: Served) -> None:
        self.service = service
        self.acme = service.opened("acme", "tiny")
        self.rival = service.opened("rival", "tiny")
        self.origin: dict[str, Any] = self.acme["origin"]
        self.target = self._target(self.acme)
        self.theirs = self._target(self.rival)

    def _target(self, opened: dict[str, Any]) -> str:
        resolved, bucket = opened["resolved"], opened["origin"]["bucket"]
        return f"/{bucket}/bdn/{resolved['org_id']}/weights/{resolved['target']['relative_key']}"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrored]:
    place = tmp_path_factory.mktemp("refusals")
    store = DirectoryStore(str(place / "mirror"))
    fill(store, "acme", "tiny", FILES)
    fill(store, "rival", "tiny", {"config.json": b"another's\n"})
    twin = fill(store, "acme", "twins", FILES)
    for last in "12":
        digest = "a" * 63 + last
        row = msgspec.json.encode(msgspec.structs.replace(twin, digest=f"b3:{digest}"))
        store.put(f"volumes/acme/weights/twins/versions/{digest}.json", row, "application/json", "any")
    keys = {"acme": "acme_key", "rival": "rival_key"}
    service = Served(place / "service", mirror=str(place / "mirror"), serve={"keys": keys})
    yield Mirrored(service)
    service.close()


@pytest.fixture(scope="module")
def service(found: Mirrored) -> Served:
    return found.service


# ---- tokens ----------------------------------------------------------------------------------


def test_a_token_says_what_it_opens(service: Served) -> None:
    answer = service.token("acme", "tiny", "Other").json
    assert answer["namespaces"] == ["weights"]
    assert answer["volumes"] == ["tiny", "other"]
    assert answer["scopes"] == ["PULL"]
    assert answer["bdn_endpoint"] == service.url


@pytest.mark.parametrize(
    "authorization", ["", "Bearer ", "Bearer wrong", "Basic YTpi", f"Bearer {KEYS['acme']}x"]
)
def test_no_token_without_a_key(service: Served, authorization: str) -> None:
    body = b'{"scopes": ["PULL"], "namespaces": ["weights"], "volumes": ["tiny"]}'
    answer = service.ask("POST", "/v1/volumes/token", {"authorization": authorization}, body)
    assert answer.status == 401
    assert answer.json["error"]["reason"] == "UNAUTHENTICATED"
    assert answer.json["error"]["message"] == "the API key is not accepted"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[" * 20_000, 400),
        (b'{"scopes": ["PULL"], "namespaces": ["weights"]}', 400),
        (b'{"scopes": ["PULL"], "namespaces": [], "volumes": ["tiny"]}', 400),
        (b'{"scopes": ["PULL"], "namespaces": ["../etc"], "volumes": ["tiny"]}', 400),
        (b'{"scopes": ["PULL"], "namespaces": ["weights"], "volumes": ["*"]}', 400),
        (b'{"scopes": ["PULL", "PUSH"], "namespaces": ["weights"], "volumes": ["tiny"]}', 403),
        (json.dumps({"scopes": ["PULL"], "namespaces": ["ab"], "volumes": ["v" * 200] * 60}).encode(), 400),
        (b" " * 70_000, 413),
    ],
)
def test_token_requests_that_are_none(service: Served, body: bytes, status: int) -> None:
    headers = {"authorization": f"Bearer {KEYS['acme']}"}
    answer = service.ask("POST", "/v1/volumes/token", headers, body)
    assert answer.status == status, answer.body
    assert answer.json["error"]["message"]


def test_a_body_without_an_end_is_not_waited_for_in_memory(service: Served) -> None:
    headers = {"authorization": f"Bearer {KEYS['acme']}", "content-length": str(1 << 40)}
    answer = service.ask("POST", "/v1/volumes/resolve?ref=bdn:weights/tiny", headers)
    assert answer.status == 401


# ---- resolve ---------------------------------------------------------------------------------


def test_resolve_says_only_its_own(found: Mirrored, service: Served) -> None:
    assert found.acme["resolved"]["org_id"] == "acme"
    assert found.acme["resolved"]["resolved_from"] == "head"
    assert set(found.origin) == {
        *("endpoint", "region", "bucket", "access_key_id", "secret_access_key", "session_token", "expires_at")
    }
    token = service.token("acme", "tiny").json["token"]
    answer = service.resolve(token, "bdn:weights/other")
    assert (answer.status, answer.json["error"]["reason"]) == (403, "PERMISSION_DENIED")
    assert service.resolve(token, "bdn:others/tiny").status == 403
    assert service.resolve(token, "s3://bucket").status == 400
    assert service.resolve(token, "").status == 400
    assert service.resolve(token, "bdn:weights/tiny:" + "t" * 5000).status == 400
    assert service.resolve(token, "bdn:weights/tiny:nosuchtag").status == 404


def test_resolve_wants_a_token_of_its_own(found: Mirrored, service: Served) -> None:
    token = service.token("acme", "tiny").json["token"]
    stated, _, mark = token.partition(".")
    others = (
        "",
        "x",
        ".",
        KEYS["acme"],
        stated,
        f"{stated}.",
        f"{stated}.{mark[:-1]}",
        f"{stated}A.{mark}",
        f"{mark}.{stated}",
        found.origin["session_token"],
        "é" * 40,
        "A" * 9000,
    )
    for other in others:
        given = {"authorization": f"Bearer {other}".encode().decode("latin-1")}
        answer = service.ask("POST", "/v1/volumes/resolve?ref=bdn:weights/tiny", given)
        assert answer.status == 401, other


def test_a_short_digest_that_is_two(service: Served) -> None:
    token = service.token("acme", "twins").json["token"]
    answer = service.resolve(token, f"bdn:weights/twins@{'a' * 20}")
    assert (answer.status, answer.json["error"]["reason"]) == (409, "AMBIGUOUS_PREFIX")
    answer = service.resolve(token, f"bdn:weights/twins@{'a' * 63}1")
    assert (answer.status, answer.json["resolved"]["resolved_from"]) == (200, "pin")


# ---- objects ---------------------------------------------------------------------------------


def test_an_object_as_s3_gives_it(found: Mirrored, service: Served) -> None:
    answer = fetch(service, found.origin, found.target)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/vnd.baseten.bdn.manifest.v1"
    assert answer.headers["content-length"] == str(len(answer.body))
    digest = found.acme["resolved"]["origin_digest"]
    assert f"b3:{blake3(answer.body).hexdigest()}" == digest
    head = fetch(service, found.origin, found.target, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert {name: head.headers[name] for name in ("content-type", "content-length", "etag")} == {
        name: answer.headers[name] for name in ("content-type", "content-length", "etag")
    }
    whole = answer.body
    for asked, part in (
        ("bytes=0-0", slice(0, 1)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=3-999999999", slice(3, None)),
    ):
        answer = fetch(service, found.origin, found.target, range=asked)
        assert (answer.status, answer.body) == (206, whole[part]), asked
        assert answer.headers["content-length"] == str(len(answer.body))
        start = len(whole) - 7 if asked == "bytes=-7" else part.start
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.body) - 1}/{len(whole)}"
    for asked in ("bytes=5-3", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=x-"):
        answer = fetch(service, found.origin, found.target, range=asked)
        assert (answer.status, answer.body) == (200, whole), asked
    for asked in (f"bytes={len(whole)}-", "bytes=-0"):
        answer = fetch(service, found.origin, found.target, range=asked)
        assert (answer.status, answer.code) == (416, "InvalidRange"), asked
        assert answer.headers["content-range"] == f"bytes */{len(whole)}"


def test_another_s3_client_reads_and_does_nothing_else(found: Mirrored) -> None:
    client: Any = boto3.client(
        "s3",
        endpoint_url=found.origin["endpoint"],
        region_name=found.origin["region"],
        aws_access_key_id=found.origin["access_key_id"],
        aws_secret_access_key=found.origin["secret_access_key"],
        aws_session_token=found.origin["session_token"],
        config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )
    _, bucket, key = found.target.split("/", 2)
    answer = client.get_object(Bucket=bucket, Key=key, Range="bytes=1-9")
    assert answer["Body"].read() == fetch(found.service, found.origin, found.target).body[1:10]
    assert client.head_object(Bucket=bucket, Key=key)["ContentType"].endswith("manifest.v1")
    for refused, code in (
        (lambda: client.list_objects_v2(Bucket=bucket), "AccessDenied"),
        (lambda: client.list_buckets(), "AccessDenied"),
        (lambda: client.head_bucket(Bucket=bucket), "403"),
        (lambda: client.get_object(Bucket=bucket, Key=key, VersionId="1"), "InvalidRequest"),
        (lambda: client.get_object_acl(Bucket=bucket, Key=key), "InvalidRequest"),
        (lambda: client.put_object(Bucket=bucket, Key=key, Body=b"x"), "MethodNotAllowed"),
        (lambda: client.delete_object(Bucket=bucket, Key=key), "MethodNotAllowed"),
        (
            lambda: client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]}),
            "MethodNotAllowed",
        ),
        (lambda: client.create_multipart_upload(Bucket=bucket, Key=key), "MethodNotAllowed"),
    ):
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            refused()
        assert caught.value.response["Error"]["Code"] == code
    client.close()


def test_only_objects_of_the_credentials_own(found: Mirrored, service: Served) -> None:
    bucket = found.origin["bucket"]
    base = f"/{bucket}/bdn/acme/weights"
    absent = f"{base}/objects/b3/00/00/{'0' * 64}"
    assert fetch(service, found.origin, absent)[0] == 404
    assert fetch(service, found.origin, absent).code == "NoSuchKey"
    assert fetch(service, found.origin, f"{base}/objects/b3/00/01/{'0' * 64}").code == "NoSuchKey"
    tail = found.target.removeprefix(f"{base}/")
    for target in (
        found.theirs,
        found.target.replace("/weights/", "/others/"),
        f"/other{found.target}",
        f"/{bucket}",
        f"/{bucket}/",
        "/",
        "//",
        f"/{found.target}",
        f"{base}//{tail}",
        f"{base}/{tail}/",
        f"{base}/./{tail}",
        f"{base}/../weights/{tail}",
        f"{base}/../../rival/weights/{tail}",
        f"{base}/%2e%2e/weights/{tail}",
        f"{base}/..%2fweights/{tail}",
        f"{base}/objects/../../../../volumes/acme/weights/tiny/head.json",
        f"{base}/objects/b3/%2e%2e/%2e%2e/{'0' * 64}",
        f"{base}/{tail}%00",
        f"{base}/{tail}%0a",
        f"{base}/{tail}.json",
        found.target.replace("/weights/", "/WEIGHTS/"),
        found.target.replace("/acme/", "/%61cme/"),
        f"/{bucket}/volumes/acme/weights/tiny/head.json",
        f"/{bucket}/volumes/acme/weights/tiny/tags/main.json",
        f"/{bucket}/.bdnfs/lock",
        f"/{bucket}/bdn/acme/weights/.bdnfs/lock",
        "/etc/passwd",
        "/v1/../etc/passwd",
    ):
        answer = fetch(service, found.origin, target)
        assert answer.status in (403, 404), (target, answer)
        assert answer.code in ("AccessDenied", "NoSuchKey") or answer.json["error"], target
        assert fetch(service, found.origin, target, "HEAD").body == b""
    # Its own object still is there, under its own name alone.
    assert fetch(service, found.origin, found.target).status == 200
    assert fetch(service, found.rival["origin"], found.theirs).status == 200
    assert fetch(service, found.rival["origin"], found.target).code == "AccessDenied"


def test_nothing_can_be_written_or_listed(found: Mirrored, service: Served) -> None:
    for method in ("PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        for target in (found.target, f"/{found.origin['bucket']}/bdn/acme/weights/new"):
            answer = fetch(service, found.origin, target, method)
            assert (answer.status, answer.code) == (405, "MethodNotAllowed"), (method, target)
    for query in ("?list-type=2", "?uploads", "?acl", "?x-id=PutObject"):
        answer = fetch(service, found.origin, found.target + query)
        assert (answer.status, answer.code) == (400, "InvalidRequest"), query
    assert fetch(service, found.origin, found.target + "?x-id=GetObject").status == 200
    listing = fetch(service, found.origin, f"/{found.origin['bucket']}?list-type=2&prefix=bdn")
    assert (listing.status, listing.code) == (403, "AccessDenied")


def test_a_signature_that_is_not_right(found: Mirrored, service: Served) -> None:
    right = signed(service, found.origin, found.target)
    assert service.ask("GET", found.target, right).status == 200

    def code(target: str = found.target, method: str = "GET", **headers: str) -> str:
        answer = service.ask(method, target, {**right, **headers})
        assert answer.status == 403
        return answer.code

    wrong, given = "SignatureDoesNotMatch", right["authorization"]
    assert code(authorization="") == "AccessDenied"
    assert code(authorization=f"Bearer {found.origin['session_token']}") == "AccessDenied"
    assert code(authorization=given[:-1]) == "AccessDenied"
    assert code(authorization=given[:-1] + ("0" if given[-1] != "0" else "1")) == wrong
    assert code(authorization=given.replace("Credential=BDNFS", "Credential=BDNFX")) == wrong
    assert code(authorization=given.replace("us-east-1", "eu-west-1")) == wrong
    assert code(authorization=given.replace("host;", "")) == wrong
    assert code(target=found.target[:-1] + ("0" if found.target[-1] != "0" else "1")) == wrong
    assert code(target=f"{found.target}?x-id=GetObject") == wrong
    assert code(**{"x-amz-date": "20200101T000000Z"}) == wrong
    assert code(**{"x-amz-content-sha256": "0" * 64}) == wrong
    assert code(**{"x-amz-acl": "public-read"}) == wrong
    assert code(host="elsewhere.example") == wrong
    assert service.ask("HEAD", found.target, right).status == 403
    token = found.origin["session_token"]
    stated, _, mark = token.partition(".")
    theirs = found.rival["origin"]["session_token"]
    for other in (
        "x",
        f"{token}A",
        f"A{token}",
        f"{stated}.{mark[::-1]}",
        f"{theirs.partition('.')[0]}.{mark}",
    ):
        assert code(**{"x-amz-security-token": other}) == "InvalidToken"
    # A sound token of another's, with these keys.
    assert code(**{"x-amz-security-token": theirs}) == wrong
    assert fetch(service, {**found.origin, "secret_access_key": "x"}, found.target).code == wrong
    assert fetch(service, {**found.origin, "session_token": theirs}, found.target).code == wrong
    bearer = service.token("acme", "tiny").json["token"]
    assert fetch(service, {**found.origin, "session_token": bearer}, found.target).code == "InvalidToken"
    presigned = f"{found.target}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={'0' * 64}"
    assert service.ask("GET", presigned).code == "AccessDenied"


def test_a_clock_that_is_off(found: Mirrored, service: Served) -> None:
    for off_s in (-16 * 60, 16 * 60):
        answer = fetch(service, found.origin, found.target, at_s=time.time() + off_s)
        assert (answer.status, answer.code) == (403, "RequestTimeTooSkewed")
    for off_s in (-12 * 60, 12 * 60):
        assert fetch(service, found.origin, found.target, at_s=time.time() + off_s).status == 200


def test_only_these_calls_are_there(service: Served) -> None:
    assert service.ask("GET", "/healthz").json == {"status": "ok"}
    for method, target in (
        ("GET", "/v1/volumes/token"),
        ("GET", "/v1/volumes/resolve?ref=bdn:weights/tiny"),
        ("POST", "/v1/volumes"),
        ("GET", "/v1/"),
        ("POST", "/v1/volumes/weights/tiny/objects"),
    ):
        answer = service.ask(method, target)
        assert (answer.status, answer.json["error"]["reason"]) == (404, "NOT_FOUND"), target
    for target in ("/", "/docs", "/openapi.json", "/metrics", "/volumes/acme/weights/tiny/head.json"):
        assert service.ask("GET", target).code == "AccessDenied"
