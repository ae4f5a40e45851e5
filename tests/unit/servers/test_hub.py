"""The Hub's own answers, seen by a plain client."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from urllib3.exceptions import NewConnectionError

from benchmarks.servers.hub import HubServer
from benchmarks.servers.serving import Request
from tests.unit.servers.conftest import FILES, REPO, WEIGHTS, Client

SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def link(hub: HubServer, client: Client) -> str:
    return client.get(f"{hub.url}/{REPO}/resolve/main/model.safetensors").headers["Location"]


def test_info_names_the_commit_of_every_way_to_say_it(hub: HubServer, client: Client):
    sha = hub.repository(REPO).branches["main"]
    hub.tag(REPO, "v1", sha)
    for place in ("", "/revision/main", "/revision/v1", f"/revision/{sha}", "/revision/refs%2Fheads%2Fmain"):
        info = client.get(f"{hub.url}/api/models/{REPO}{place}").json()
        assert info["sha"] == sha
    assert [each["rfilename"] for each in info["siblings"]] == sorted(FILES)
    assert (info["private"], info["gated"]) == (False, False)


def test_the_tree_lists_git_and_lfs_digests(hub: HubServer, client: Client):
    listing = client.get(f"{hub.url}/api/models/{REPO}/tree/main?recursive=true&expand=false").json()
    by_path = {entry["path"]: entry for entry in listing}
    assert {path: entry["type"] for path, entry in by_path.items()} == {
        "config.json": "file",
        "model.safetensors": "file",
        "sub": "directory",
        "sub/dir": "directory",
        "sub/dir/notes.txt": "file",
    }
    assert by_path["config.json"]["oid"] == hashlib.sha1(b'blob 8\0{"a": 1}').hexdigest()
    assert "lfs" not in by_path["config.json"]
    lfs = by_path["model.safetensors"]["lfs"]
    assert (lfs["oid"], lfs["size"], lfs["pointerSize"]) == (SHA256, len(WEIGHTS), 131)


def test_the_tree_without_recursion_is_one_directory(hub: HubServer, client: Client):
    tree = f"{hub.url}/api/models/{REPO}/tree/main"
    assert [each["path"] for each in client.get(tree).json()] == ["config.json", "model.safetensors", "sub"]
    assert [each["path"] for each in client.get(f"{tree}/sub/dir").json()] == ["sub/dir/notes.txt"]
    missing = client.get(f"{tree}/nowhere")
    assert (missing.status, missing.headers["X-Error-Code"]) == (404, "EntryNotFound")


def test_pages_follow_from_one_another(hub: HubServer, client: Client):
    hub.page_size = 2
    hub.commit(REPO, {f"{number:02}.txt": str(number) for number in range(5)})
    url, pages = f"{hub.url}/api/models/{REPO}/tree/main?recursive=true&limit=50", []
    while url:
        page = client.get(url)
        pages.append([each["path"] for each in page.json()])
        following = page.headers.get("Link", "")
        assert not following or following.endswith('; rel="next"')
        url = following.partition("<")[2].partition(">")[0]
    assert pages == [["00.txt", "01.txt"], ["02.txt", "03.txt"], ["04.txt"]]


def test_small_files_are_served_where_they_are(hub: HubServer, client: Client):
    answer = client.get(f"{hub.url}/{REPO}/resolve/main/config.json")
    oid = hashlib.sha1(b'blob 8\0{"a": 1}').hexdigest()
    assert (answer.status, answer.data) == (200, FILES["config.json"])
    assert answer.headers["ETag"] == f'"{oid}"'
    assert answer.headers["X-Repo-Commit"] == hub.repository(REPO).branches["main"]
    assert hub.bytes_sent == len(FILES["config.json"])


def test_small_files_by_the_way_of_the_resolve_cache(hub: HubServer, client: Client):
    hub.resolve_cache = True
    answer = client.get(f"{hub.url}/{REPO}/resolve/main/sub/dir/notes.txt")
    assert answer.status == 307
    place = answer.headers["Location"]
    assert place.startswith("/api/resolve-cache/models/org/model/")
    assert client.get(hub.url + place).data == b"notes"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_lfs_files_are_a_redirect_to_another_port(hub: HubServer, client: Client, method: str):
    answer = client.get(f"{hub.url}/{REPO}/resolve/main/model.safetensors", method)
    assert answer.status == 302
    assert answer.headers["X-Linked-Size"] == str(len(WEIGHTS))
    assert answer.headers["X-Linked-ETag"] == f'"{SHA256}"'
    assert urlsplit(answer.headers["Location"]).netloc == urlsplit(hub.cdn_url).netloc
    assert hub.cdn_url != hub.url
    assert client.get(answer.headers["Location"]).data == WEIGHTS


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-99", 10, 100),
        ("bytes=299990-", 299_990, 300_000),
        ("bytes=-7", 299_993, 300_000),
        ("bytes=299999-400000", 299_999, 300_000),
    ],
)
def test_single_ranges(hub: HubServer, client: Client, asked: str, start: int, stop: int):
    answer = client.get(link(hub, client), Range=asked)
    assert (answer.status, answer.data) == (206, WEIGHTS[start:stop])
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/300000"
    assert hub.bytes_sent == stop - start


def test_a_range_behind_the_end_is_refused(hub: HubServer, client: Client):
    answer = client.get(link(hub, client), Range="bytes=300000-")
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */300000")


def test_if_range_and_if_match_hold_to_the_etag(hub: HubServer, client: Client):
    url = link(hub, client)
    assert client.get(url, Range="bytes=0-9", If_Range=f'"{SHA256}"').status == 206
    assert client.get(url, Range="bytes=0-9", If_Range='"other"').data == WEIGHTS
    assert client.get(url, If_Match='"other"').status == 412


def test_links_expire(tmp_path: Path, client: Client):
    now = [1000.0]
    with HubServer(tmp_path, link_lifetime_s=60, clock=lambda: now[0]) as hub:
        hub.commit(REPO, FILES)
        url = link(hub, client)
        now[0] = 1060.0
        assert client.get(url).status == 200
        now[0] = 1061.0
        expired = client.get(url)
        assert (expired.status, b"Request has expired" in expired.data) == (403, True)
        fresh = link(hub, client)
        hub.expire_links()
        assert b"Request has expired" in client.get(fresh).data


@pytest.mark.parametrize(
    ("old", "new"), [("Signature=", "Signature=0"), ("Expires=", "Expires=9"), ("/cdn/", "/")]
)
def test_links_can_not_be_bent(hub: HubServer, client: Client, old: str, new: str):
    answer = client.get(link(hub, client).replace(old, new))
    assert (answer.status, b"Access denied" in answer.data) == (403, True)


def test_an_authorization_at_the_cdn_is_noted(hub: HubServer, client: Client):
    url = link(hub, client)
    assert hub.stray_authorizations == []
    client.get(url, Authorization="Bearer hf_secret")
    assert hub.stray_authorizations == ["Bearer hf_secret"]


def test_old_commits_stay_and_branches_move(hub: HubServer, client: Client):
    old = hub.repository(REPO).branches["main"]
    new = hub.commit(REPO, {"config.json": b"new"})
    side = hub.commit(REPO, {"config.json": b"side"}, branch="a/b")
    assert len({old, new, side}) == 3
    for revision, content in ((old, b'{"a": 1}'), ("main", b"new"), (new, b"new"), ("a%2Fb", b"side")):
        assert client.get(f"{hub.url}/{REPO}/resolve/{revision}/config.json").data == content
    assert client.get(f"{hub.url}/{REPO}/resolve/main/model.safetensors").status == 404


def test_datasets_are_apart_from_models(hub: HubServer, client: Client):
    hub.commit(REPO, {"data.csv": b"a,b"}, kind="datasets")
    assert client.get(f"{hub.url}/datasets/{REPO}/resolve/main/data.csv").data == b"a,b"
    assert client.get(f"{hub.url}/{REPO}/resolve/main/data.csv").status == 404
    listing = client.get(f"{hub.url}/api/datasets/{REPO}/tree/main").json()
    assert [each["path"] for each in listing] == ["data.csv"]


def test_refusals_are_the_hubs(hub: HubServer, client: Client):
    hub.repository(REPO).gated = "manual"
    hub.commit("org/private", {"a.txt": b"a"})
    hub.repository("org/private").private = True
    some = hub.token("hf_some")
    good = hub.token("hf_good", reads=["org/private"], accepted=[REPO])
    asked = [
        (f"/{REPO}/resolve/main/config.json", None, 401, "GatedRepo"),
        (f"/{REPO}/resolve/main/config.json", some, 403, "GatedRepo"),
        (f"/{REPO}/resolve/main/config.json", good, 200, None),
        (f"/api/models/{REPO}/tree/main", None, 200, None),
        ("/org/private/resolve/main/a.txt", None, 401, "RepoNotFound"),
        ("/org/private/resolve/main/a.txt", some, 404, "RepoNotFound"),
        ("/org/private/resolve/main/a.txt", good, 200, None),
        ("/api/models/org/none", None, 401, "RepoNotFound"),
        ("/api/models/org/none", some, 404, "RepoNotFound"),
        ("/api/models/org/private", "hf_unknown", 401, None),
        (f"/api/models/{REPO}/revision/nope", None, 404, "RevisionNotFound"),
        (f"/{REPO}/resolve/main/nope", good, 404, "EntryNotFound"),
    ]
    for path, token, status, code in asked:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = client.get(hub.url + path, **headers)
        assert (path, token, answer.status, answer.headers.get("X-Error-Code")) == (path, token, status, code)
        assert status == 200 or answer.headers["X-Error-Message"] == answer.json()["error"]


def test_a_tree_can_lie(hub: HubServer, client: Client):
    lies = [{"type": "file", "oid": "0" * 40, "size": 5, "path": "../x"}] * 2
    hub.commit(REPO, {"../x": b"longer than five"}, tree=lies)
    assert client.get(f"{hub.url}/api/models/{REPO}/tree/main?recursive=true").json() == lies
    assert client.get(f"{hub.url}/api/models/{REPO}").json()["siblings"] == [{"rfilename": "../x"}] * 2
    assert client.get(f"{hub.url}/{REPO}/resolve/main/%2E%2E%2Fx").data == b"longer than five"


def test_requests_are_noted_until_reset(hub: HubServer, client: Client):
    client.get(f"{hub.url}/{REPO}/resolve/main/config.json?download=true", Range="bytes=0-3")
    client.get(f"{hub.url}/_stats")
    assert hub.requests == [Request("GET", f"/{REPO}/resolve/main/config.json", "bytes=0-3", 206)]
    hub.reset()
    assert (hub.requests, hub.bytes_sent) == ([], 0)


def test_one_connection_carries_many_requests(hub: HubServer, client: Client):
    for _ in range(3):
        assert client.get(f"{hub.url}/{REPO}/resolve/main/config.json").data == FILES["config.json"]
        assert client.get(f"{hub.url}/nowhere").status == 404
    assert client.pool.connection_from_url(hub.url).num_connections == 1


def test_a_stopped_hub_refuses_and_comes_back_where_it_was(hub: HubServer, client: Client):
    url = link(hub, client)
    hub.stop()
    with pytest.raises(NewConnectionError, match="refused"):
        client.pool.connection_from_url(hub.url).request("GET", "/")
    hub.start()
    assert client.get(url).data == WEIGHTS


def test_the_command_serves_a_directory(tmp_path: Path, client: Client):
    (tmp_path / "org/model").mkdir(parents=True)
    (tmp_path / "org/model/config.json").write_text("{}")
    (tmp_path / "datasets/org/data").mkdir(parents=True)
    (tmp_path / "datasets/org/data/a.csv").write_text("a")
    command = [sys.executable, "-m", "benchmarks.servers.hub", str(tmp_path), "--until-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        assert client.get(f"{url}/org/model/resolve/main/config.json").data == b"{}"
        assert client.get(f"{url}/datasets/org/data/resolve/main/a.csv").data == b"a"
        assert client.get(f"{url}/api/models/datasets/org").status == 401
        assert json.loads(client.get(f"{url}/_stats").data) == {"bytes_sent": 3, "requests": 3}
        client.pool.clear()
        assert server.stdin
        server.stdin.close()
        assert server.wait(10) == 0
