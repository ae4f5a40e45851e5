"""What is Azure's, Google's, R2's and CoreWeave's alone: prefixes, markers, keys that are no paths, endpoints."""

import base64
import json
from collections.abc import Callable, Iterator

import pytest

from bdnfs.core.errors import (
    BdnfsError,
    CredentialsError,
    NotFoundError,
    SpecError,
    UpstreamError,
)
from bdnfs.delivery.resolve import list_snapshot
from bdnfs.manifest.model import FileEntry
from bdnfs.origins.base import Origin
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import Secret, UpstreamConfig
from bdnfs.spec.patterns import Patterns
from bdnfs.spec.source import parse_source
from bdnfs.spec.weights import Weights
from tests.contract.azurite import ACCOUNT, KEY, AzureSite
from tests.contract.gcs import GcsSite
from tests.contract.raw import RawServer

KEYS = ("a/b/x.bin", "a/b/deep/y.bin", "a/bc/z.bin", "a/b.bin", "same/same", "single.bin")


class Bucket:
    """A bucket of a real server: what puts into it, and what it is called."""

    def __init__(
        self, name: str, put: Callable[[str, str, bytes], None], shown: str, upstream: UpstreamConfig
    ) -> None:
        self.name, self._put, self._shown, self.upstream = name, put, shown, upstream

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self._put(bucket, key, content)

    def open(self, place: str) -> Origin:
        return open_origin(parse_source(f"{self._shown}{place}"), self.upstream)

    def listed(self, place: str) -> dict[str, int]:
        return {entry.path: entry.size for entry in self.open(place).list(None)}

    def weights(self, place: str) -> Weights:
        return Weights(parse_source(f"{self._shown}{place}"), "/m")


@pytest.fixture(scope="module", params=["azure", "gs"])
def store(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    if request.param == "azure":
        azure: AzureSite = request.getfixturevalue("azure")
        yield Bucket("azure", azure.put_blob, f"azure://{ACCOUNT}/", azure.upstream())
    else:
        gcs: GcsSite = request.getfixturevalue("gcs")
        yield Bucket("gs", gcs.put_object, "gs://", gcs.upstream())


@pytest.fixture(scope="module")
def plain(store: Bucket) -> Bucket:
    for key in KEYS:
        store.put("plain", key, key.encode())
    return store


def read_all(store: Bucket, place: str) -> dict[str, bytes]:
    entries = list(store.open(place).list(None))
    # As another process reads, which has not listed.
    origin = store.open(place)
    return {entry.path: read(origin, entry) for entry in entries}


def read(origin: Origin, entry: FileEntry) -> bytes:
    into = bytearray(entry.size)
    origin.read(None, entry, 0, memoryview(into))
    return bytes(into)


def test_a_prefix_ends_at_a_slash(plain: Bucket) -> None:
    assert read_all(plain, "plain/a/b") == {"x.bin": b"a/b/x.bin", "deep/y.bin": b"a/b/deep/y.bin"}
    assert set(plain.listed("plain/a/b/")) == {"x.bin", "deep/y.bin"}
    assert set(plain.listed("plain/a")) == {"b/x.bin", "b/deep/y.bin", "bc/z.bin", "b.bin"}
    assert set(plain.listed("plain")) == set(KEYS)


def test_a_key_is_one_file(plain: Bucket) -> None:
    assert read_all(plain, "plain/a/b.bin") == {"b.bin": b"a/b.bin"}
    assert read_all(plain, "plain/single.bin") == {"single.bin": b"single.bin"}
    assert read_all(plain, "plain/same") == {"same": b"same/same"}


def test_what_is_not_there(plain: Bucket) -> None:
    for place in ("plain/a/nothing", "no-such-bucket/x", "no-such-bucket"):
        with pytest.raises(NotFoundError):
            plain.listed(place)


def test_directory_markers_are_no_files(store: Bucket) -> None:
    for key, body in (("m/", b""), ("m/sub/", b""), ("m/sub/file", b"1"), ("m/empty", b""), ("m/void/", b"")):
        store.put("marked", key, body)
    assert store.listed("marked/m") == {"sub/file": 1, "empty": 0}
    assert store.listed("marked") == {"m/sub/file": 1, "m/empty": 0}
    assert store.listed("marked/m/empty") == {"empty": 0}


@pytest.mark.parametrize("key", ["x/a//b", "x/./b", "x/a\tb"])
def test_a_key_that_is_no_path_is_named_at_resolve(store: Bucket, key: str) -> None:
    bucket = f"odd{sum(key.encode())}"
    for each in (key, "x/good"):
        store.put(bucket, each, b"1")
    with pytest.raises(UpstreamError) as caught:
        list_snapshot(store.open(f"{bucket}/x"), store.weights(f"{bucket}/x"), None, print)
    assert repr(key.removeprefix("x/"))[1:-1] in str(caught.value)


def test_a_key_with_a_slash_at_its_end_and_content_is_never_a_file(store: Bucket) -> None:
    for each in ("x/a/", "x/good"):
        store.put("ending", each, b"1")
    weights = store.weights("ending/x")
    if store.name == "gs":
        with pytest.raises(UpstreamError, match="'a/'"):
            list_snapshot(store.open("ending/x"), weights, None, print)
        return
    # obstore lists it as a file; it is found out when it is read.
    origin = store.open("ending/x")
    (entry, good) = list_snapshot(origin, weights, None, print).files
    assert read(origin, good) == b"1"
    with pytest.raises(NotFoundError, match=r"ends with '/'.*ignore_patterns"):
        read(origin, entry)


def test_patterns_leave_out_what_is_no_path_where_the_client_library_lists_it(gcs: GcsSite) -> None:
    for key in ("x/a//b", "x/a/", "x/good"):
        gcs.put_object("patterned", key, b"1")
    weights = Weights(parse_source("gs://patterned/x"), "/m", Patterns(ignore=("a/**",)))
    origin = open_origin(weights.source, gcs.upstream())
    assert [file.path for file in list_snapshot(origin, weights, None, print).files] == ["good"]


# ---- endpoints -----------------------------------------------------------------------------------


@pytest.fixture
def empty() -> Iterator[RawServer]:
    with RawServer(
        lambda _: [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]
    ) as server:
        yield server


def asked(place: str, empty: RawServer, upstream: UpstreamConfig, secret: str | None = None) -> str:
    """Return the head of the first request for place, which finds nothing."""
    empty.heads.clear()
    origin = open_origin(parse_source(place), upstream, Secret(secret) if secret else None)
    with pytest.raises(NotFoundError):
        list(origin.list(None))
    return empty.heads[0]


AWS_KEYS = {"AWS_ACCESS_KEY_ID": "AKMINE", "AWS_SECRET_ACCESS_KEY": "mine"}


@pytest.mark.parametrize("scheme", ["r2", "cw"])
def test_a_variable_or_a_secret_names_another_endpoint_and_awss_own_does_not(
    scheme: str, empty: RawServer
) -> None:
    place, elsewhere = f"{scheme}://acct.bucket/key", "http://127.0.0.1:1"
    variable = f"{scheme.upper()}_ENDPOINT_URL"
    aws = {**AWS_KEYS, "AWS_ENDPOINT_URL": elsewhere, "AWS_REGION": "eu-north-1", variable: empty.url}
    head = asked(place, empty, UpstreamConfig(aws=aws))
    bucket, region = ("bucket", "auto") if scheme == "r2" else ("acct.bucket", "eu-north-1")
    assert head.startswith(f"HEAD /{bucket}/key ")
    assert f"/{region}/s3/" in head
    secret = {"aws_access_key_id": "AKOTHER", "aws_secret_access_key": "s", "aws_endpoint_url": empty.url}
    head = asked(place, empty, UpstreamConfig(aws={**aws, variable: elsewhere}), json.dumps(secret))
    assert "Credential=AKOTHER/" in head


@pytest.mark.parametrize(
    ("place", "aws", "host", "path"),
    [
        ("r2://acct.bucket/key", {}, "acct.r2.cloudflarestorage.com", "/bucket/key"),
        ("cw://bucket/key", {}, "bucket.cwobject.com", "/key"),
        ("cw://bucket/key", {"CW_ENDPOINT_URL": "http://cwlota.com"}, "bucket.cwlota.com", "/key"),
    ],
)
def test_the_rule_of_a_provider(
    place: str, aws: dict[str, str], host: str, path: str, empty: RawServer
) -> None:
    # What a proxy is asked for tells where the request is meant to go; TLS it is told by CONNECT.
    origin = open_origin(parse_source(place), UpstreamConfig(aws=aws, proxies={"all": empty.url}))
    with pytest.raises(BdnfsError):
        list(origin.list(None))
    target = empty.heads[0].split(" ")[1]
    assert target == (f"http://{host}{path}" if aws else f"{host}:443")


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    for variable, place in (("R2_ENDPOINT_URL", "r2://a.b/k"), ("CW_ENDPOINT_URL", "cw://b/k")):
        with pytest.raises(SpecError, match=variable):
            open_origin(parse_source(place), UpstreamConfig(aws={variable: "http://[hidden"}))


def test_nobody_else_gets_what_is_awss_alone(empty: RawServer) -> None:
    aws = {"AWS_REQUEST_PAYER": "requester", "AWS_ROLE_ARN": "arn:x", "AWS_WEB_IDENTITY_TOKEN_FILE": "/none"}
    head = asked("cw://bucket/key", empty, UpstreamConfig(aws={**aws, "CW_ENDPOINT_URL": empty.url})).lower()
    assert "authorization" not in head
    assert "request-payer" not in head


# ---- Azure's credentials -------------------------------------------------------------------------


def test_without_credentials_a_public_container_is_read(azure: AzureSite) -> None:
    azure.make("public", {"x-ms-blob-public-access": "container"})
    azure.put_blob("public", "m/file", b"open to all")
    azure.put_blob("private", "m/file", b"closed")
    upstream = UpstreamConfig(azure={"AZURE_STORAGE_ENDPOINT": azure.endpoint(azure.port)})
    origin = open_origin(parse_source(f"azure://{ACCOUNT}/public/m"), upstream)
    (entry,) = origin.list(None)
    assert read(origin, entry) == b"open to all"
    closed = open_origin(parse_source(f"azure://{ACCOUNT}/private/m"), upstream)
    with pytest.raises((CredentialsError, NotFoundError)) as caught:
        list(closed.list(None))
    assert "private" in str(caught.value)


def test_azures_secret_goes_first_and_its_variables_are_about_one_account(azure: AzureSite) -> None:
    azure.put_blob("keyed", "m/file", b"content")
    source = parse_source(f"azure://{ACCOUNT}/keyed/m")
    endpoint = {"AZURE_STORAGE_ENDPOINT": azure.endpoint(azure.port)}
    wrong = base64.b64encode(b"another key").decode()
    given = Secret(json.dumps({"account_key": KEY}))
    upstream = UpstreamConfig(azure={**endpoint, "AZURE_STORAGE_ACCOUNT_KEY": wrong})
    (entry,) = open_origin(source, upstream, given).list(None)
    assert entry.size == 7
    with pytest.raises(CredentialsError, match=r"don't suffice.*account_key") as caught:
        list(open_origin(source, upstream).list(None))
    assert wrong not in str(caught.value)
    elsewhere = {"AZURE_STORAGE_ACCOUNT": "someone", "AZURE_STORAGE_ENDPOINT": azure.endpoint(azure.port)}
    assert open_origin(source, UpstreamConfig(azure=elsewhere)).name.endswith(" at Azure")


def test_a_shared_access_signature_is_sent_as_it_is(empty: RawServer) -> None:
    azure = {"AZURE_STORAGE_ENDPOINT": f"{empty.url}/acct"}
    sas = "?sv=2023-11-03&sp=rl&sig=hidden%2Bkey%3D"
    for upstream, secret in (
        (UpstreamConfig(azure={**azure, "AZURE_STORAGE_SAS_TOKEN": sas}), None),
        (UpstreamConfig(azure=azure), json.dumps({"sas_token": sas})),
    ):
        head = asked("azure://acct/box/key", empty, upstream, secret)
        assert "sig=hidden%2Bkey%3D" in head.splitlines()[0]
        assert "authorization" not in head.lower()


def test_a_service_principal_shows_the_token_it_is_given() -> None:
    def answer(head: str) -> list[bytes]:
        body = '{"access_token": "principal-token", "expires_in": 3600, "token_type": "Bearer"}'
        status = "200 OK" if head.startswith("POST") else "404 Not Found"
        body = body if head.startswith("POST") else ""
        return [
            f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        ]

    with RawServer(answer) as server:
        azure = {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "tenant", "AZURE_CLIENT_SECRET": "hidden"}
        places = {"AZURE_STORAGE_ENDPOINT": f"{server.url}/acct", "AZURE_AUTHORITY_HOST": server.url}
        origin = open_origin(parse_source("azure://acct/box/key"), UpstreamConfig(azure=azure | places))
        with pytest.raises(NotFoundError):
            list(origin.list(None))
        assert server.heads[0].startswith("POST /tenant/oauth2/v2.0/token ")
        assert "authorization: bearer principal-token" in server.heads[1].lower()


def test_azures_environment_of_the_process_is_not_asked(
    empty: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCOUNT_KEY", "SAS_TOKEN", "TOKEN", "ENDPOINT", "CLIENT_ID", "USE_EMULATOR"):
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", "true" if name == "USE_EMULATOR" else KEY)
    upstream = UpstreamConfig(azure={"AZURE_STORAGE_ENDPOINT": f"{empty.url}/acct"})
    head = asked("azure://acct/box/key", empty, upstream)
    assert head.startswith("HEAD /acct/box/key HTTP")
    assert "authorization" not in head.lower()
