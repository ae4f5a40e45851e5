"""The Hub's ways: refusals that say what to do, listings in pages, and the one question of a hit."""

import http.client
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdnfs.core.errors import BdnfsError, CredentialsError, NotFoundError, UnavailableError, UpstreamError
from bdnfs.origins import hub as hub_module
from bdnfs.origins.hub_revision import branch_commit
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import Secret, UpstreamConfig
from bdnfs.spec.source import parse_source
from benchmarks.servers.hub import HubServer
from tests.contract.raw import RawServer

TOKEN = "hf_VerySecretTokenValue0123456789"
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 5000}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path, page_size=2) as server:
        yield server


def by_origin(hub: HubServer, text: str, token: str | None) -> None:
    """Resolve, list and read, as a mount without a cache does."""
    upstream = UpstreamConfig(hf_endpoint=hub.url, hf_token=Secret(token) if token else None, stall_s=2.0)
    source = parse_source(text)
    origin = open_origin(source, upstream, None)
    try:
        for entry in origin.list(origin.resolve(source.revision)):
            assert entry
    finally:
        origin.close()


def by_branch(hub: HubServer, text: str, token: str | None) -> str:
    source = parse_source(text)
    return branch_commit(hub.url, source.rest, source.kind, source.revision, token, timeout_s=2.0)


Ask = Callable[[HubServer, str, str | None], object]
WAYS = pytest.mark.parametrize("ask", [by_origin, by_branch])


def refused(ask: Ask, hub: HubServer, text: str, token: str | None = None) -> BdnfsError:
    with pytest.raises(BdnfsError) as caught:
        ask(hub, text, token)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    return caught.value


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_branches_tags_and_commits_resolve(hub: HubServer, kind: str) -> None:
    text = f"hf://{'datasets/' if kind == 'datasets' else ''}org/name"
    old = hub.commit("org/name", {"a": b"1"}, kind=kind)
    hub.tag("org/name", "v1/rc", old, kind=kind)
    new = hub.commit("org/name", {"a": b"2"}, kind=kind)
    other = hub.commit("org/name", {"a": b"3"}, branch="refs/pr/1", kind=kind)
    for revision, commit in ((None, new), ("main", new), ("v1/rc", old), ("refs/pr/1", other), (old, old)):
        source = parse_source(text if revision is None else f"{text}@{revision}")
        assert branch_commit(hub.url, source.rest, source.kind, source.revision) == commit
        origin = open_origin(source, UpstreamConfig(hf_endpoint=hub.url))
        assert origin.resolve(source.revision) == commit
        origin.close()


def test_the_one_question_is_one_request(hub: HubServer) -> None:
    hub.commit("org/model", FILES)
    hub.reset()
    branch_commit(hub.url, "org/model", "model", None)
    assert [(request.method, request.status) for request in hub.requests] == [("GET", 200)]


@WAYS
def test_a_missing_repository(hub: HubServer, ask: Ask) -> None:
    hub.token(TOKEN)
    for token in (None, TOKEN):
        error = refused(ask, hub, "hf://org/missing", token)
        assert isinstance(error, NotFoundError)
        assert "hf://org/missing" in str(error)
        assert "private" in str(error)


@WAYS
def test_a_missing_revision(hub: HubServer, ask: Ask) -> None:
    hub.commit("org/model", FILES)
    error = refused(ask, hub, "hf://org/model@no-such-branch")
    assert isinstance(error, NotFoundError)
    assert "'no-such-branch'" in str(error)


@WAYS
def test_a_private_repository(hub: HubServer, ask: Ask) -> None:
    hub.commit("org/model", FILES)
    hub.repository("org/model").private = True
    error = refused(ask, hub, "hf://org/model")
    assert "HF_TOKEN" in str(error)
    assert "private" in str(error)
    hub.token(TOKEN)
    assert "may not read it" in str(refused(ask, hub, "hf://org/model", TOKEN))
    hub.token(TOKEN, reads=["org/model"])
    ask(hub, "hf://org/model", TOKEN)


@WAYS
def test_a_token_that_nobody_knows(hub: HubServer, ask: Ask) -> None:
    hub.commit("org/model", FILES)
    error = refused(ask, hub, "hf://org/model", TOKEN)
    assert isinstance(error, CredentialsError)
    assert "does not know the token" in str(error)


def test_a_gated_repository_says_which_it_is_before_a_byte_is_fetched(hub: HubServer) -> None:
    hub.commit("org/model", FILES)
    hub.repository("org/model").gated = "manual"
    hub.token(TOKEN)
    error = refused(by_origin, hub, "hf://org/model")
    assert isinstance(error, CredentialsError)
    assert "no token was given" in str(error)
    assert f"{hub.url}/org/model" in str(error)
    assert "HF_TOKEN" in str(error)
    error = refused(by_origin, hub, "hf://org/model", TOKEN)
    assert isinstance(error, CredentialsError)
    assert "was not granted access" in str(error)
    assert f"{hub.url}/org/model" in str(error)
    assert hub.bytes_sent == 0
    hub.token(TOKEN, accepted=["org/model"])
    by_origin(hub, "hf://org/model", TOKEN)


def test_reading_a_gated_file_says_so_too(hub: HubServer) -> None:
    hub.commit("org/model", FILES)
    origin = open_origin(parse_source("hf://org/model"), UpstreamConfig(hf_endpoint=hub.url))
    revision = origin.resolve(None)
    entries = list(origin.list(revision))
    hub.repository("org/model").gated = "auto"
    for entry in entries:
        with pytest.raises(CredentialsError, match="is gated and no token was given"):
            origin.read(revision, entry, 0, memoryview(bytearray(entry.size)))
    origin.close()


@WAYS
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"status": 500}, UnavailableError),
        ({"status": 429, "headers": {"Retry-After": "3"}}, UnavailableError),
        ({"reset": True}, UnavailableError),
        ({"truncate_at": 10}, UnavailableError),
        ({"status": 200, "body": "<html>"}, UpstreamError),
        ({"status": 200, "body": "[]"}, UpstreamError),
        ({"status": 200, "body": '{"sha": "main"}'}, UpstreamError),
        ({"status": 418}, UpstreamError),
        ({"redirect_to": "file:///etc/passwd"}, UpstreamError),
        ({"stall": True}, UnavailableError),
    ],
    ids=str,
)
def test_an_answer_that_names_no_commit(
    hub: HubServer, ask: Ask, fault: dict[str, object], expected: type[BdnfsError]
) -> None:
    hub.token(TOKEN)
    hub.commit("org/model", FILES)
    hub.faults.add(match="/revision/", times=None, **fault)
    error = refused(ask, hub, "hf://org/model", TOKEN)
    assert type(error) is expected, error
    if "headers" in fault:
        assert isinstance(error, UnavailableError)
        assert error.retry_after_s == 3.0
    hub.stop()
    assert type(refused(ask, hub, "hf://org/model", TOKEN)) is UnavailableError


def test_a_renamed_repository_is_followed_within_the_hub_only(hub: HubServer) -> None:
    commit = hub.commit("org/new", FILES)
    hub.faults.add(match="/org/old/", redirect_to="/api/models/org/new/revision/main?expand=sha")
    assert branch_commit(hub.url, "org/old", "model", None, None) == commit
    hub.faults.add(match="/org/old/", redirect_to=f"{hub.cdn_url}/api/models/org/new/revision/main")
    with pytest.raises(UpstreamError, match="HF_ENDPOINT"):
        branch_commit(hub.url, "org/old", "model", None, TOKEN)
    assert hub.stray_authorizations == []


def test_the_question_goes_through_a_proxy() -> None:
    sha = "0123456789" * 4
    body = f'{{"sha": "{sha}"}}'
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with RawServer(lambda _: [answer]) as proxy:
        found = branch_commit(
            "http://hub.test", "org/model", "model", "main", TOKEN, proxies={"http": proxy.url, "no": "x"}
        )
        assert found == sha
        assert proxy.heads[0].startswith("GET http://hub.test/api/models/org/model/revision/main")
    with RawServer(lambda _: [b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"]) as proxy:
        for scheme in ("http", "https"):
            with pytest.raises(CredentialsError, match="proxy"):
                branch_commit(f"{scheme}://hub.test", "org/model", "model", None, proxies={"all": proxy.url})


# ---- listings ------------------------------------------------------------------------------------


def listing(hub: HubServer) -> dict[str, tuple[int, str | None, str]]:
    origin = open_origin(parse_source("hf://org/model"), UpstreamConfig(hf_endpoint=hub.url))
    try:
        found = origin.list(origin.resolve(None))
        return {entry.path: (entry.size, entry.digest, entry.identity) for entry in found}
    finally:
        origin.close()


def test_a_listing_in_many_pages_is_whole(hub: HubServer) -> None:
    files = {f"part-{number:02}/of.txt": b"x" * number for number in range(23)}
    hub.commit("org/model", files)
    assert {path: size for path, (size, _, _) in listing(hub).items()} == {
        path: len(content) for path, content in files.items()
    }


def test_digests_are_the_lfs_sha256_or_the_git_blob_id(hub: HubServer) -> None:
    hub.commit("org/model", {"a.txt": b"hello\n", "b.safetensors": b"hello\n"})
    found = listing(hub)
    # printf 'hello\n' | git hash-object --stdin; printf 'hello\n' | sha256sum
    assert found["a.txt"][1] == "git-sha1:ce013625030ba8dba906f756967f9e9ca394464a"
    assert found["b.safetensors"][1] == (
        "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    )


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "file", "path": "x", "size": -1, "oid": "0" * 40},
        {"type": "file", "path": "x", "size": "5", "oid": "0" * 40},
        {"type": "file", "path": "x", "size": True, "oid": "0" * 40},
        {"type": "file", "path": "x", "oid": "0" * 40},
        {"type": "file", "path": 7, "size": 1, "oid": "0" * 40},
        {"type": "file", "path": "x", "size": 1, "oid": "not hex"},
        {"type": "file", "path": "x", "size": 1, "oid": None},
        {"type": "file", "path": "x", "size": 1, "oid": "0" * 40, "lfs": {"oid": "short", "size": 1}},
        {"type": "file", "path": "x", "size": 1, "oid": "0" * 40, "lfs": {"size": 1}},
        {"type": "file", "path": "x", "size": 1, "oid": "0" * 40, "lfs": "yes"},
        {},
    ],
    ids=str,
)
def test_a_hostile_listing_is_refused(hub: HubServer, entry: dict[str, object]) -> None:
    hub.commit("org/model", {"x": b"x"}, tree=[entry])
    with pytest.raises(UpstreamError, match="something else than a listing"):
        listing(hub)


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ('<http://127.0.0.1:1/api/models/org/model/tree/x>; rel="next"', "another host"),
        ('<file:///etc/passwd>; rel="next"', "another host"),
        ('<?cursor=again>; rel="next"', "in a circle"),
    ],
)
def test_pages_lead_nowhere_else_and_not_for_ever(
    hub: HubServer, link: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "PAGES_MAX", 5)
    hub.commit("org/model", FILES)
    hub.faults.add(match="/tree/", status=200, headers={"Link": link}, body="[]", times=None)
    with pytest.raises(UpstreamError, match=said):
        listing(hub)


def test_no_connection_is_left_after_the_question(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    close = http.client.HTTPConnection.close
    monkeypatch.setattr(
        http.client.HTTPConnection, "close", lambda self: (closed.append(self), close(self))[1]
    )
    hub.commit("org/model", FILES)
    branch_commit(hub.url, "org/model", "model", None)
    assert all(connection.sock is None for connection in closed)
    assert closed
