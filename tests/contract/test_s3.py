"""What is S3's alone: prefixes, markers, keys that are no paths, credentials, and servers that fail."""

import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bdnfs.core.errors import (
    BdnfsError,
    ChangedError,
    CredentialsError,
    NotFoundError,
    UnavailableError,
    UpstreamError,
)
from bdnfs.manifest.model import FileEntry
from bdnfs.origins.aws import AwsAccess
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.registry import open_origin
from bdnfs.origins.s3 import S3Origin
from bdnfs.spec.config import Secret, UpstreamConfig
from bdnfs.spec.source import parse_source
from tests.contract.raw import RawServer
from tests.contract.servers import S3Site

KEYS = ("a/b/x.bin", "a/b/deep/y.bin", "a/bc/z.bin", "a/b.bin", "same/same", "single.bin")


@pytest.fixture(scope="module")
def bucket(s3: S3Site) -> S3Site:
    client = s3.client()
    client.create_bucket(Bucket="plain")
    for key in KEYS:
        client.put_object(Bucket="plain", Key=key, Body=key.encode())
    return s3


def listed(site: S3Site, text: str) -> dict[str, int]:
    origin = open_origin(parse_source(text), site.upstream())
    return {entry.path: entry.size for entry in origin.list(None)}


def read_all(site: S3Site, text: str) -> dict[str, bytes]:
    origin = open_origin(parse_source(text), site.upstream())
    entries = list(origin.list(None))
    # As another process reads, which has not listed.
    origin = open_origin(parse_source(text), site.upstream())
    found = {}
    for entry in entries:
        into = bytearray(entry.size)
        origin.read(None, entry, 0, memoryview(into))
        found[entry.path] = bytes(into)
    return found


def test_a_prefix_ends_at_a_slash(bucket: S3Site) -> None:
    assert read_all(bucket, "s3://plain/a/b") == {"x.bin": b"a/b/x.bin", "deep/y.bin": b"a/b/deep/y.bin"}
    assert set(listed(bucket, "s3://plain/a/b/")) == {"x.bin", "deep/y.bin"}
    assert set(listed(bucket, "s3://plain/a")) == {"b/x.bin", "b/deep/y.bin", "bc/z.bin", "b.bin"}
    assert set(listed(bucket, "s3://plain")) == set(KEYS)


def test_a_key_is_one_file(bucket: S3Site) -> None:
    assert read_all(bucket, "s3://plain/a/b.bin") == {"b.bin": b"a/b.bin"}
    assert read_all(bucket, "s3://plain/single.bin") == {"single.bin": b"single.bin"}
    assert read_all(bucket, "s3://plain/same") == {"same": b"same/same"}


def test_what_is_not_there(bucket: S3Site) -> None:
    for text in ("s3://plain/a/nothing", "s3://no-such-bucket/x", "s3://no-such-bucket"):
        with pytest.raises(NotFoundError):
            listed(bucket, text)


def test_directory_markers_are_no_files(s3: S3Site) -> None:
    client = s3.client()
    client.create_bucket(Bucket="marked")
    for key, body in (("m/", b""), ("m/sub/", b""), ("m/sub/file", b"1"), ("m/empty", b""), ("m/void/", b"")):
        client.put_object(Bucket="marked", Key=key, Body=body)
    assert listed(s3, "s3://marked/m") == {"sub/file": 1, "empty": 0}
    assert listed(s3, "s3://marked") == {"m/sub/file": 1, "m/empty": 0}
    assert listed(s3, "s3://marked/m/empty") == {"empty": 0}


@pytest.mark.parametrize("key", ["x/a//b", "x/./b", "x/../b", "x/a\tb"])
def test_a_key_that_is_no_path_is_named(s3: S3Site, key: str) -> None:
    client = s3.client()
    client.create_bucket(Bucket="odd")
    client.put_object(Bucket="odd", Key=key, Body=b"1")
    with pytest.raises(UpstreamError) as caught:
        listed(s3, "s3://odd/x")
    assert repr(key) in str(caught.value)
    client.delete_object(Bucket="odd", Key=key)


@pytest.mark.parametrize(("key", "text"), [("x/a/", "s3://slashed/x"), ("/a", "s3://slashed")])
def test_a_key_with_content_that_begins_or_ends_with_a_slash_is_never_read(
    s3: S3Site, key: str, text: str
) -> None:
    client = s3.client()
    client.create_bucket(Bucket="slashed")
    client.put_object(Bucket="slashed", Key=key, Body=b"1")
    origin = open_origin(parse_source(text), s3.upstream())
    (entry,) = origin.list(None)
    with pytest.raises(NotFoundError, match=r"begins or ends with '/'.*ignore_patterns"):
        origin.read(None, entry, 0, memoryview(bytearray(1)))
    client.delete_object(Bucket="slashed", Key=key)


def test_a_listing_in_many_pages_is_whole(s3: S3Site) -> None:
    client = s3.client()
    client.create_bucket(Bucket="many")
    for number in range(25):
        client.put_object(Bucket="many", Key=f"m/{number:02}", Body=b"x")
    assert client.list_objects_v2(Bucket="many")["IsTruncated"]
    assert listed(s3, "s3://many/m") == {f"{number:02}": 1 for number in range(25)}


# ---- credentials ---------------------------------------------------------------------------------


def heads_of(upstream: UpstreamConfig, secret: Secret | None, server: RawServer) -> str:
    origin = open_origin(parse_source("s3://bucket/key"), upstream, secret)
    with pytest.raises(NotFoundError):
        list(origin.list(None))
    return server.heads[-1].lower()


@pytest.fixture
def empty() -> Iterator[RawServer]:
    with RawServer(
        lambda _: [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]
    ) as server:
        yield server


def test_without_credentials_requests_are_anonymous(empty: RawServer) -> None:
    upstream = UpstreamConfig(aws={"AWS_ENDPOINT_URL": empty.url, "AWS_SHARED_CREDENTIALS_FILE": "/none"})
    assert "authorization" not in heads_of(upstream, None, empty)


def test_the_environment_of_the_process_is_not_asked(
    empty: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-somebody-else")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKELSE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "else")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    upstream = UpstreamConfig(
        aws={"AWS_ENDPOINT_URL": empty.url, "AWS_ACCESS_KEY_ID": "AKMINE", "AWS_SECRET_ACCESS_KEY": "mine"}
    )
    head = heads_of(upstream, None, empty)
    assert "credential=akmine/" in head
    assert "x-amz-security-token" not in head


def test_a_secret_goes_first_and_brings_region_and_token(empty: RawServer) -> None:
    upstream = UpstreamConfig(
        aws={"AWS_ENDPOINT_URL": empty.url, "AWS_ACCESS_KEY_ID": "AKMINE", "AWS_SECRET_ACCESS_KEY": "mine"}
    )
    secret = Secret(
        '{"aws_access_key_id": "AKOTHER", "aws_secret_access_key": "s", "aws_region": "eu-north-1", '
        '"aws_session_token": "passing"}'
    )
    head = heads_of(upstream, secret, empty)
    assert "credential=akother/" in head
    assert "/eu-north-1/s3/" in head
    assert "x-amz-security-token: passing" in head


ROLE = '{"AccessKeyId": "AKROLE", "SecretAccessKey": "s", "Token": "t", "Expiration": "2999-01-01T00:00:00Z"}'


def metadata(head: str) -> list[bytes]:
    """Answer as a machine's metadata service does."""
    path = head.split(" ")[1]
    body = ROLE if path.endswith("/my-role") else "my-role" if "security-credentials" in path else "token"
    return [f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()]


def test_the_machines_role_is_asked_for_where_anonymous_access_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(head: str) -> list[bytes]:
        if "authorization:" not in head.lower():
            return [b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]
        body = "x" * (0 if head.startswith("HEAD") else 10)
        ranged = "" if head.startswith("HEAD") else "Content-Range: bytes 0-9/10\n"
        status = "200 OK" if head.startswith("HEAD") else "206 A"
        return [
            f"HTTP/1.1 {status}\n{META}{ranged}Content-Length: 10\n\n{body}".replace("\n", "\r\n").encode()
        ]

    with RawServer(answer) as server, RawServer(metadata) as machine:
        # The one thing that obstore takes from the environment: no user sets it.
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", machine.url)
        access = AwsAccess("us-east-1", server.url, None, {}, requester_pays=False, instance=True)
        (entry,) = S3Origin("bucket", "key", access, HttpConfig(stall_s=2.0)).list(None)
        origin = S3Origin("bucket", "key", access, HttpConfig(stall_s=2.0))
        with ThreadPoolExecutor(4) as threads:
            for into in threads.map(lambda _: read_ten(origin, entry), range(8)):
                assert into == b"x" * 10
        assert "credential=akrole/" in server.heads[-1].lower()


def read_ten(origin: S3Origin, entry: FileEntry) -> bytes:
    into = bytearray(10)
    origin.read(None, entry, 0, memoryview(into))
    return bytes(into)


# ---- servers that fail ---------------------------------------------------------------------------

META = 'ETag: "v1"\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\nConnection: close\n'
BODY = "b" * 100


def failing(head: str, answer: str) -> list[bytes]:
    """Answer the look at a 1000-byte object well, and a read of [100, 200) as answer says."""
    if head.startswith("HEAD"):
        answer = f"200 OK\n{META}Content-Length: 1000\n\n"
    return [f"HTTP/1.1 {answer}".replace("\n", "\r\n").encode()]


FAULTS: list[tuple[str, type[BdnfsError]]] = [
    ("401 A\nContent-Length: 0\n\n", CredentialsError),
    ("403 A\nContent-Length: 0\n\n", CredentialsError),
    ("400 A\nContent-Length: 32\n\n<Error><Code>ExpiredToken</Code>", CredentialsError),
    ("404 A\nContent-Length: 0\n\n", NotFoundError),
    ("412 A\nContent-Length: 0\n\n", ChangedError),
    ("416 A\nContent-Length: 0\n\n", ChangedError),
    ("429 A\nRetry-After: 1\nContent-Length: 0\n\n", UnavailableError),
    ("500 A\nContent-Length: 0\n\n", UnavailableError),
    ("503 A\nContent-Length: 0\n\n", UnavailableError),
    ("301 A\nContent-Length: 0\n\n", UpstreamError),
    ("400 A\nContent-Length: 0\n\n", UpstreamError),
    (f"200 OK\n{META}Content-Length: 1000\n\n{BODY}", UpstreamError),
    (f"206 A\n{META}Content-Range: bytes 101-200/1000\nContent-Length: 100\n\n{BODY}", UpstreamError),
    (f"206 A\n{META}Content-Range: bytes 100-199/1000\nContent-Length: 101\n\n{BODY}b", UpstreamError),
    (f"206 A\n{META}Content-Range: bytes 100-199/1000\nContent-Length: 99\n\n{BODY[1:]}", UnavailableError),
    (f"206 A\n{META}Content-Range: bytes 100-199/1000\nContent-Length: 100\n\n{BODY[1:]}", UnavailableError),
    (f"206 A\n{META}Content-Range: bytes 100-199/1001\nContent-Length: 100\n\n{BODY}", ChangedError),
    (
        f"206 A\n{META.replace('v1', 'v2')}Content-Range: bytes 100-199/1000\nContent-Length: 100\n\n",
        ChangedError,
    ),
]


@pytest.mark.parametrize(("answer", "expected"), FAULTS)
def test_a_fault_is_one_class_and_never_the_right_bytes(answer: str, expected: type[BdnfsError]) -> None:
    with RawServer(lambda head: failing(head, answer)) as server:
        aws = {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "AK",
            "AWS_SECRET_ACCESS_KEY": "hidden-key",
        }
        origin = open_origin(parse_source("s3://bucket/file.bin"), UpstreamConfig(aws=aws, stall_s=0.5))
        (entry,) = origin.list(None)
        assert (entry.path, entry.size, entry.identity) == ("file.bin", 1000, '"v1"')
        with pytest.raises(BdnfsError) as caught:
            origin.read(None, entry, 100, memoryview(bytearray(100)))
        assert type(caught.value) is expected, caught.value
        assert "hidden-key" not in "".join(traceback.format_exception(caught.value))
        # One request each: whether to try again is decided elsewhere.
        assert len([head for head in server.heads if head.startswith("GET")]) == 1


@pytest.mark.parametrize("pause_s", [0.02, 60.0])
def test_a_trickle_and_a_stall_end_in_time(pause_s: float) -> None:
    def answer(head: str) -> Iterator[bytes]:
        yield failing(head, f"206 A\n{META}Content-Range: bytes 100-199/1000\nContent-Length: 100\n\n")[0]
        while head.startswith("GET") and not server.closing.wait(pause_s):
            yield b"b"

    with RawServer(answer) as server:
        upstream = UpstreamConfig(aws={"AWS_ENDPOINT_URL": server.url}, stall_s=0.4)
        origin = open_origin(parse_source("s3://bucket/file.bin"), upstream)
        (entry,) = origin.list(None)
        began_s = time.monotonic()
        with pytest.raises(UnavailableError):
            origin.read(None, entry, 100, memoryview(bytearray(100)))
        assert time.monotonic() - began_s < 4
