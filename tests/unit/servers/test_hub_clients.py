"""The Hub's own client takes our Hub for the real one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.unit.servers.conftest import FILES, REPO, WEIGHTS

SNAPSHOT = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], revision=sys.argv[2]))
"""

ERRORS = """
import json, sys
from huggingface_hub import HfApi, errors
said = []
for repo, revision, file in json.loads(sys.argv[1]):
    try:
        api = HfApi()
        api.hf_hub_download(repo, file, revision=revision)
        said.append("fine")
    except errors.HfHubHTTPError as error:
        said.append(type(error).__name__)
print(json.dumps(said))
"""

LISTINGS = """
import json, sys
from huggingface_hub import HfApi
api, repo = HfApi(), sys.argv[1]
info, refs = api.model_info(repo, files_metadata=True), api.list_repo_refs(repo)
print(json.dumps({
    "sha": info.sha,
    "sizes": {each.rfilename: each.size for each in info.siblings},
    "tree": [each.path for each in api.list_repo_tree(repo, recursive=True)],
    "refs": [each.name for each in [*refs.branches, *refs.tags]],
    "data": api.list_repo_files(repo, repo_type="dataset"),
}))
"""


def python(hub: HubServer, home: Path, script: str, *arguments: str, token: str | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("resolve_cache", [False, True])
def test_snapshot_download_brings_every_file(hub: HubServer, tmp_path: Path, resolve_cache: bool):
    hub.resolve_cache = resolve_cache
    snapshot = Path(python(hub, tmp_path, SNAPSHOT, REPO, "main", token=hub.token("hf_any")))
    assert snapshot.name == hub.repository(REPO).branches["main"]
    assert {
        path.relative_to(snapshot).as_posix(): path.read_bytes()
        for path in snapshot.rglob("*")
        if path.is_file()
    } == FILES
    assert hub.stray_authorizations == []
    assert hub.bytes_sent == sum(map(len, FILES.values()))


def test_listings(hub: HubServer, tmp_path: Path):
    hub.page_size = 2
    sha = hub.repository(REPO).branches["main"]
    hub.tag(REPO, "v1", sha)
    hub.commit(REPO, {"a.csv": b"a"}, kind="datasets")
    said = json.loads(python(hub, tmp_path, LISTINGS, REPO))
    assert said["sha"] == sha
    assert said["sizes"] == {path: len(content) for path, content in FILES.items()}
    assert said["tree"] == ["config.json", "model.safetensors", "sub", "sub/dir", "sub/dir/notes.txt"]
    assert (said["refs"], said["data"]) == (["main", "v1"], ["a.csv"])
    assert len(WEIGHTS) == said["sizes"]["model.safetensors"]


def test_refusals_are_the_clients_own_errors(hub: HubServer, tmp_path: Path):
    hub.commit("org/gated", FILES)
    hub.repository("org/gated").gated = "auto"
    asked = [
        [REPO, "main", "config.json"],
        ["org/gated", "main", "config.json"],
        ["org/none", "main", "config.json"],
        [REPO, "nope", "config.json"],
        [REPO, "main", "nope.json"],
    ]
    said = json.loads(python(hub, tmp_path, ERRORS, json.dumps(asked)))
    refused = [
        "GatedRepoError",
        "RepositoryNotFoundError",
        "RevisionNotFoundError",
        "RemoteEntryNotFoundError",
    ]
    assert said == ["fine", *refused]
