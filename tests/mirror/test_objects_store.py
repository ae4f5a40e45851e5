"""What is a bucket's alone: servers without conditional puts, keys that are renewed, slow lines, bulk deletes."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bdnfs.core.errors import CredentialsError, SpecError, UnavailableError
from bdnfs.mirror.gcs import GcsStore
from bdnfs.mirror.objects import ObjectsStore
from bdnfs.mirror.opening import open_store
from bdnfs.origins.aws import aws_access
from bdnfs.origins.credentials import AccessToken, AwsKeys, Credential
from bdnfs.origins.gcs_client import GcsClient
from bdnfs.origins.http import HttpConfig
from bdnfs.origins.s3 import S3Bucket
from bdnfs.spec.config import Secret, UpstreamConfig
from benchmarks.servers.faults import Fault, Faults
from tests.contract.raw import RawServer
from tests.mirror.conftest import started
from tests.mirror.stores import Stores
from tests.upstream.fronts import assert_clear
from tests.upstream.proxy import FaultyProxy

CHUNK = "application/vnd.baseten.bdn.chunk.v1"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with started("s3", tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(scope="module")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with started("gs", tmp_path_factory.mktemp("gs")) as found:
        yield found


@pytest.fixture
def proxy(s3: Stores) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.port, Faults()) as proxy:
        s3.reached = int(proxy.url.rpartition(":")[2])
        yield proxy
        s3.reached = s3.port


# ---- conditional puts ----------------------------------------------------------------------------

KNOWS_NONE = {
    "501": Fault(status=501, body=""),
    "not-implemented": Fault(status=400, body="<Error><Code>NotImplemented</Code></Error>"),
    "invalid-argument": Fault(status=400, body="<Error><Code>InvalidArgument</Code></Error>"),
}


@pytest.mark.parametrize("answer", KNOWS_NONE)
def test_a_server_without_conditional_puts_is_looked_at_before_each_write(
    s3: Stores, proxy: FaultyProxy, answer: str
) -> None:
    store = s3.fresh()
    proxy.faults.add(replace(KNOWS_NONE[answer], method="PUT"))
    assert store.put("key", b"one", CHUNK, "absent")
    assert not store.put("key", b"two", CHUNK, "absent")
    version = store.get("key", 3).version
    assert store.put("key", b"three", CHUNK, version)
    assert not store.put("key", b"four", CHUNK, version)
    assert store.get("key", 9)[:2] == (b"three", CHUNK)
    # It said so once, and is believed from then on.
    puts = [asked for asked in proxy.asked if asked.method == "PUT"]
    assert ["if-none-match" in asked.headers for asked in puts] == [True, False, False]
    assert not any("if-match" in asked.headers for asked in puts)


@pytest.mark.parametrize("status", [400, 503])
def test_a_write_that_failed_for_another_reason_says_nothing_of_conditions(
    s3: Stores, proxy: FaultyProxy, status: int
) -> None:
    store = s3.fresh()
    body = "<Error><Code>RequestTimeout</Code></Error>"  # what S3 says, with status 400, of an upload that stalls
    proxy.faults.add(Fault(status=status, body=body, method="PUT"))
    with pytest.raises(UnavailableError) as caught:
        store.put("key", b"one", CHUNK, "absent")
    assert_clear(caught.value)
    assert store.put("key", b"one", CHUNK, "absent")
    assert "if-none-match" in proxy.asked[-1].headers


def test_a_conflict_says_nothing_of_what_is_there(s3: Stores, proxy: FaultyProxy) -> None:
    store = s3.fresh()
    body = "<Error><Code>ConditionalRequestConflict</Code></Error>"
    proxy.faults.add(Fault(status=409, body=body, method="PUT"))
    with pytest.raises(UnavailableError) as caught:
        store.put("key", b"one", CHUNK, "absent")
    assert_clear(caught.value)
    assert store.put("key", b"one", CHUNK, "absent")


def test_an_upload_is_given_more_time_than_an_answer(s3: Stores, proxy: FaultyProxy) -> None:
    store = s3.fresh(stall_s=0.5)
    proxy.faults.add(Fault(delay_s=1.2, method="PUT"))
    assert store.put("key", b"one", CHUNK, "absent")
    proxy.faults.add(Fault(delay_s=1.2, method="GET"))
    with pytest.raises(UnavailableError):
        store.get("key", 3)


# ---- keys ----------------------------------------------------------------------------------------


class Renewed:
    """Keys that are others once they were refused."""

    name = "the secret 'keys'"

    def __init__(self) -> None:
        self.used = 0

    def current(self) -> AwsKeys:
        return AwsKeys(f"AK{self.used}", "hidden-key")

    def refused(self, used: AwsKeys) -> bool:
        self.used += 1
        return True


def test_keys_that_were_renewed_meanwhile_are_tried_once(s3: Stores, proxy: FaultyProxy) -> None:
    keys: Credential[AwsKeys] = Renewed()
    access = replace(aws_access(s3.upstream().aws), keys=keys)
    bucket = s3.fresh_url().partition("://")[2].partition("/")[0]
    store = ObjectsStore(lambda http: S3Bucket(bucket, access, http), "renewed", HttpConfig(), keys)
    proxy.faults.add(Fault(status=403, times=1))
    assert store.put("key", b"one", CHUNK, "absent")
    shown = [asked.headers["authorization"].partition("Credential=")[2][:4] for asked in proxy.asked[-2:]]
    assert shown == ["AK0/", "AK1/"]
    proxy.faults.add(Fault(status=403, times=2))
    with pytest.raises(CredentialsError) as caught:
        store.get("key", 3)
    assert_clear(caught.value)


class Token:
    """A token of Google's that is another one once it was refused."""

    name = "the machine's own service account"

    def __init__(self) -> None:
        self.used = 0

    def current(self) -> AccessToken:
        return AccessToken(f"hidden-key-{self.used}", time.time() + 3600)

    def refused(self, used: AccessToken) -> bool:
        self.used += 1
        return True


@pytest.mark.parametrize("own", [True, False])
def test_a_token_of_googles_is_tried_once_more(gs: Stores, own: bool) -> None:
    """The next one of its own, or the machine's where nothing was given and that was refused."""
    token = Token()
    with FaultyProxy(gs.port, Faults()) as proxy:
        bucket = gs.fresh_url().partition("://")[2].partition("/")[0]
        client = GcsClient(proxy.url, HttpConfig())
        given = (token, None) if own else (None, token)
        store = GcsStore(bucket, "", given[0], client, 30.0, given[1])
        proxy.faults.add(Fault(status=401, times=1))
        assert store.put("key", b"one", CHUNK, "absent")
        shown = [asked.headers.get("authorization", "") for asked in proxy.asked]
        first = (
            ["Bearer hidden-key-0", *["Bearer hidden-key-1"] * 2]
            if own
            else ["", *["Bearer hidden-key-0"] * 2]
        )
        assert shown == first
        proxy.faults.add(Fault(status=403, times=2))
        with pytest.raises(CredentialsError) as caught:
            store.get("key", 3)
        assert_clear(caught.value)
        store.close()


# ---- deletes -------------------------------------------------------------------------------------


def test_a_delete_that_is_refused_key_by_key(s3: Stores) -> None:
    said = (
        '<?xml version="1.0"?><DeleteResult><Error><Key>key</Key><Code>AccessDenied</Code>'
        "<Message>hidden</Message></Error></DeleteResult>"
    )
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(said)}\r\nConnection: close\r\n\r\n{said}".encode()
    with RawServer(lambda _: [answer]) as server:
        aws = {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "A",
            "AWS_SECRET_ACCESS_KEY": "hidden-key",
        }
        store = open_store("s3://bucket", UpstreamConfig(aws=aws, stall_s=5.0), None)
        with pytest.raises(CredentialsError, match="may delete") as caught:
            store.delete(["key"])
        assert_clear(caught.value)


# ---- places --------------------------------------------------------------------------------------


def test_a_prefix_ends_at_a_slash(s3: Stores) -> None:
    s3.client().create_bucket(Bucket="prefixes")  # type: ignore[attr-defined]
    one, eleven = s3.open("s3://prefixes/of/1"), s3.open("s3://prefixes/of/11/")
    assert one.put("key", b"1", CHUNK, "absent")
    assert eleven.put("key", b"11", CHUNK, "absent")
    assert [(each.key, each.size) for each in one.list("")] == [("key", 1)]
    whole = s3.open("s3://prefixes")
    assert {each.key for each in whole.list("")} == {"of/1/key", "of/11/key"}
    assert "s3://prefixes/of/11 at http://127.0.0.1" in eleven.name


def test_what_is_no_key_of_ours_is_not_listed(s3: Stores) -> None:
    client = s3.client()  # type: ignore[attr-defined]
    client.create_bucket(Bucket="strangers")
    for key in ("key", "a b", ".hidden/x", "ümlaut"):
        client.put_object(Bucket="strangers", Key=key, Body=b"x")
    assert [each.key for each in s3.open("s3://strangers").list("")] == ["key"]


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "gs://",
        "r2:///prefix",
        "s3://bucket/a//b",
        "s3://bucket/../b",
        "azure://account",
        "azure://account/",
    ],
)
def test_what_names_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(SpecError, match="mirror"):
        open_store(url, UpstreamConfig(), None)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (
            "r2://account.bucket/prefix/",
            "r2://account.bucket/prefix at https://account.r2.cloudflarestorage.com",
        ),
        ("cw://bucket", "cw://bucket at https://cwobject.com"),
        ("azure://account/container/of/us", "azure://account/container/of/us at Azure"),
        ("gs://bucket/of/us", "gs://bucket/of/us at Google"),
    ],
)
def test_every_kind_of_bucket_is_opened(url: str, name: str) -> None:
    store = open_store(url, UpstreamConfig(), None)
    assert store.name == name
    store.close()


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "azure://account/container"])
def test_a_secret_of_the_wrong_shape_is_named(url: str) -> None:
    with pytest.raises(CredentialsError, match="secret") as caught:
        open_store(url, UpstreamConfig(), Secret("hidden-key"))
    assert url in str(caught.value)
    assert "hidden-key" not in str(caught.value)
