"""`bdnfs cache import`: what the Hub's own client has downloaded is mounted without fetching it again."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, TINY
from tests.commands.node import ROOT, Node
from tests.crash.dying import environment

DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], repo_type=sys.argv[2], allow_patterns=sys.argv[3:] or None))
"""
LOCAL = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], local_files_only=True))
"""
FORCED = """
import sys
from huggingface_hub import hf_hub_download
print(hf_hub_download(sys.argv[1], sys.argv[2], force_download=True))
"""
TINY_BYTES = sum(map(len, TINY.values()))


def hub_client(node: Node, script: str, *words: str, **variables: str) -> Path:
    """Run the Hub's client in the node's home; return what it says."""
    environment = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**node.environment, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def downloaded(
    node: Node, repo: str, kind: str = "model", patterns: Sequence[str] = (), **variables: str
) -> Path:
    return hub_client(node, DOWNLOAD, repo, kind, *patterns, **variables)


def cache_directory(node: Node) -> Path:
    return node.home / ".cache" / "huggingface" / "hub"


def outcomes(node: Node, *words: object, code: int = 0) -> dict[str, str]:
    found = node.run("cache", "import", "--json", *words, code=code).json
    return {file["path"]: file["outcome"] for item in found["downloads"] for file in item["files"]}


def mounts(node: Node, source: str, files: dict[str, bytes]) -> None:
    node.run("mount", source, node.m)
    node.holds(files)
    node.run("unmount", node.m)
    node.clean()


def test_what_the_client_has_is_mounted_without_a_byte(node: Node, hub: HubServer) -> None:
    snapshot = downloaded(node, "acme/big")
    hub.reset()
    looked = node.run("cache", "import", "--dry-run")
    assert "2 would be hardlinked" in looked.out
    assert "nothing was changed" in looked.out
    done = node.run("cache", "import", "--progress", "plain")
    assert (
        f"hf://acme/big@{snapshot.name[:12]}  2 files  16 MiB  2 hardlinked\n16 MiB hardlinked\n" == done.out
    )
    assert "importing 16 MiB in 2 files" in done.err
    assert f"import:hf://acme/big@{snapshot.name[:12]}  2 files  16 MiB  whole" in node.run("cache", "ls").out
    mounts(node, "hf://acme/big", BIG)
    assert hub.bytes_sent == 0
    assert node.run("cache", "du", "--json").json["present_bytes"] == BIG_BYTES
    assert set(outcomes(node).values()) == {"here"}
    # What the client has is as good to it as before.
    assert hub_client(node, LOCAL, "acme/big", HF_HUB_OFFLINE="1") == snapshot
    assert (snapshot / "config.json").read_bytes() == BIG["config.json"]
    assert node.run("cache", "verify").out == "2 blobs rehashed, 0 bad\n"


def test_only_what_was_downloaded_is_there(node: Node, hub: HubServer) -> None:
    downloaded(node, "acme/big", patterns=["config.json"])
    hub.reset()
    node.run("cache", "import", cache_directory(node))
    mounts(node, "hf://acme/big", BIG)
    assert hub.bytes_sent == len(BIG["model.safetensors"])


@pytest.mark.parametrize("links", [True, False])
def test_datasets_and_a_cache_without_symlinks(node: Node, hub: HubServer, links: bool) -> None:
    hub.commit("acme/numbers", {"a.csv": b"1,2", "sub/b.bin": b"3" * 70_000}, kind="datasets")
    place = node.home / "elsewhere"
    variables = {"HF_HUB_CACHE": str(place), **({} if links else {"HF_HUB_DISABLE_SYMLINKS": "1"})}
    snapshot = downloaded(node, "acme/numbers", "dataset", **variables)
    assert (snapshot / "a.csv").is_symlink() == links
    hub.reset()
    found = node.run("cache", "import", **variables)
    assert "hf://datasets/acme/numbers" in found.out
    mounts(node, "hf://datasets/acme/numbers", {"a.csv": b"1,2", "sub/b.bin": b"3" * 70_000})
    assert hub.bytes_sent == 0


def test_a_file_that_is_not_what_it_says(node: Node, hub: HubServer) -> None:
    snapshot = downloaded(node, "acme/big")
    blob = (snapshot / "model.safetensors").resolve()
    with blob.open("r+b") as file:
        file.seek(12345)
        file.write(b"damage")
    before = blob.stat()
    done = node.run("cache", "import", code=6)
    assert "1 of 2 files did not come in" in done.error
    assert str(blob) in done.error
    assert "1 hardlinked, 1 damaged" in done.out
    assert (blob.stat().st_mode, blob.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    hub.reset()
    mounts(node, "hf://acme/big", BIG)
    assert hub.bytes_sent == len(BIG["model.safetensors"])


def test_the_client_replaces_what_is_linked_and_never_writes_to_it(node: Node, hub: HubServer) -> None:
    """A blob is 0444 after an import; to download it anew the client makes another file."""
    downloaded(node, "acme/tiny")
    node.run("cache", "import")
    place = hub_client(node, FORCED, "acme/tiny", "model.safetensors")
    assert place.stat().st_nlink == 1
    hub.reset()
    mounts(node, "hf://acme/tiny", TINY)
    assert hub.bytes_sent == 0
    assert node.run("cache", "verify").out == "2 blobs rehashed, 0 bad\n"


def test_who_writes_to_the_linked_file_is_found_out_at_the_next_mount(node: Node, hub: HubServer) -> None:
    snapshot = downloaded(node, "acme/tiny")
    node.run("cache", "import")
    blob = (snapshot / "model.safetensors").resolve()
    blob.chmod(0o644)
    blob.write_bytes(b"another" * 10_000)
    hub.reset()
    mounts(node, "hf://acme/tiny", TINY)
    assert hub.bytes_sent == len(TINY["model.safetensors"])
    assert blob.read_bytes() == b"another" * 10_000  # and theirs was not touched


def test_it_outlives_the_clients_cache(node: Node, hub: HubServer) -> None:
    downloaded(node, "acme/tiny")
    node.run("cache", "import")
    subprocess.run(["rm", "-r", cache_directory(node)], check=True)
    hub.reset()
    mounts(node, "hf://acme/tiny", TINY)
    assert hub.bytes_sent == 0


def test_what_does_not_fit(node: Node) -> None:
    node.configure(cache={"capacity": "64MiB"})
    repository = cache_directory(node) / "models--acme--large"
    for place in (repository / "blobs", repository / "snapshots" / ("a" * 40)):
        place.mkdir(parents=True)
    (repository / "blobs" / ("0" * 64)).touch()
    os.truncate(repository / "blobs" / ("0" * 64), 65 << 20)
    (repository / "snapshots" / ("a" * 40) / "m.bin").symlink_to(f"../../blobs/{'0' * 64}")
    downloaded(node, "acme/tiny")
    done = node.run("cache", "import", code=4)
    assert "needs 65 MiB" in done.error
    assert "2 hardlinked, 1 here already" in done.out


def test_what_is_no_cache(node: Node) -> None:
    node.refused(2, "cache", "import", says=[str(cache_directory(node)), "models--"])
    node.refused(2, "cache", "import", node.home, says=["no Hugging Face cache"])


def test_an_interruption_keeps_what_is_done(node: Node, hub: HubServer) -> None:
    hub.commit("acme/other", {"m.bin": b"other" * 9999})
    downloaded(node, "acme/other")
    downloaded(node, "acme/big")
    site = node.place / "site"
    environment(node.place, ROOT, "", "command")
    (site / "sitecustomize.py").write_text(
        "import signal\n"
        "from bdnfs.core.steps import on_step\n"
        "passed = []\n"
        "def note(step):\n"
        "    passed.append(step)\n"
        "    if step == 'import:charged' and passed.count(step) == 2:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "on_step(note)\n"
    )
    ended = node.start_program(*node.program, "cache", "import", PYTHONPATH=f"{site}:{ROOT}").wait(130)
    assert "interrupted; what has been fetched is kept" in ended.error
    assert [item["source"] for item in node.run("cache", "ls", "--json").json] == ["import:hf://acme/big"]
    assert set(outcomes(node).values()) == {"here", "hardlink"}
    hub.reset()
    mounts(node, "hf://acme/other", {"m.bin": b"other" * 9999})
    assert hub.bytes_sent == 0
