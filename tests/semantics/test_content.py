"""docs/semantics.md, "Content"."""

import hashlib

from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, CHUNK
from tests.commands.node import Node, until
from tests.semantics.talker import Talker

MODEL = BIG["model.safetensors"]
EDGES = (0, 1, 4095, CHUNK - 1, CHUNK, 2 * CHUNK - 7, len(MODEL) - 1, len(MODEL))


def test_right_bytes_or_an_error(node: Node, hub: HubServer) -> None:
    node.configure(upstream={"attempts": 1})
    hub.faults.add(match="/cdn/", after=1, times=None, truncate_at=1000)
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    with Talker(node) as reader:
        reader.open(node.m / "model.safetensors")
        said = {start: reader.ask(f"os.pread(fd, 10_000, {start})") for start in EDGES}
        errors = {start for start, got in said.items() if got == "EIO"}
        assert 0 < len(errors) < len(EDGES) - 1  # one chunk came, the others didn't
        for start in EDGES:
            right = MODEL[start : start + 10_000].hex()  # short at the end of the file
            if start not in errors and said[start] != right:
                # Or at the first byte that can't be had, and then that byte is an error.
                assert said[start]
                assert right.startswith(said[start])
                assert reader.ask(f"os.pread(fd, 1, {start + len(said[start]) // 2})") == "EIO"
        hub.faults.clear()
        node.run("unmount", "--force", node.m)
    node.run("mount", "hf://acme/big", node.m)
    with Talker(node) as reader:
        reader.open(node.m / "model.safetensors")
        for start in EDGES:
            assert reader.ask(f"os.pread(fd, 10_000, {start})") == MODEL[start : start + 10_000].hex()
    node.run("unmount", node.m)
    node.clean()


def test_a_snapshot_never_changes(node: Node, hub: HubServer) -> None:
    hub.commit("acme/moving", {"a.bin": b"old a" * 1000, "b.bin": MODEL})
    hub.faults.add(match="/cdn/", after=1, times=None, stall=True)
    node.configure(upstream={"stall": "1s", "attempts": 1, "fetches": 1})
    node.run("mount", "--lazy", "hf://acme/moving", node.m)
    before = node.status()["revision"]
    hub.commit("acme/moving", {"a.bin": b"new a" * 1000, "c.bin": b"new"})
    hub.faults.clear()
    with Talker(node) as reader:
        assert reader.ask(f"sorted(os.listdir({str(node.m)!r}))") == ["a.bin", "b.bin"]
        got = reader.ask(f"open({str(node.m / 'a.bin')!r}, 'rb').read()")
        assert got in ((b"old a" * 1000).hex(), "EIO")
    assert node.status()["revision"] == before
    node.run("unmount", "--force", node.m)
    node.run("mount", "hf://acme/moving", node.m)
    assert node.read(node.m / "a.bin") == b"new a" * 1000
    # What is here does not show at all that upstream goes on.
    hub.commit("acme/moving", {"a.bin": b"newer" * 1000})
    assert node.read(node.m / "a.bin") == b"new a" * 1000
    node.run("unmount", node.m)
    node.clean()


def test_digests_come_before_whole(node: Node, hub: HubServer) -> None:
    node.configure(upstream={"attempts": 1})
    spec = node.spec({"source": "hf://acme/big", "mount_location": str(node.m)})
    calls: list[list[object]] = [
        ["mount", spec],
        ["run", spec, "--", "echo", "started"],
        ["prefetch", spec],
        ["stage", "hf://acme/big", node.place / "staged"],
    ]
    for words in calls:
        # One byte of the first chunk of two is wrong: only the file's own digest can tell.
        hub.faults.add(match="/cdn/", times=1, wrong_bytes=True)
        said = node.refused(6, *words, says=["model.safetensors", "digest"])
        assert "started" not in said
        assert not node.shown()
        node.run("cache", "evict")
        hub.faults.clear()
    # And with small files, whose digest is git's.
    hub.faults.add(match="config.json", times=None, wrong_bytes=True)
    node.refused(6, "mount", "hf://acme/tiny", node.m, says=["config.json"])
    hub.faults.clear()
    node.run("mount", "hf://acme/big", node.m)
    assert hashlib.sha256(node.read(node.m / "model.safetensors")).digest() == hashlib.sha256(MODEL).digest()
    node.run("unmount", node.m)
    node.clean()


def test_lazy_reads_of_unfinished_files(node: Node, hub: HubServer) -> None:
    node.configure(upstream={"attempts": 1, "fetches": 1, "stall": "1m"})
    # The last chunk is the wrong one: the first two can be read before that is known.
    hub.faults.add(match="/cdn/", after=2, times=1, wrong_bytes=True, delay_s=1.0)
    node.run("mount", "--lazy", "hf://acme/big", node.m)
    with Talker(node) as reader:
        reader.open(node.m / "model.safetensors")
        until(lambda: node.status()["state"] == "failed", "the fill to fail")
        for start in (0, CHUNK, 2 * CHUNK):
            # The page cache keeps what was read before the digest was known; nobody read these.
            assert reader.ask(f"os.pread(fd, 100, {start})") == "EIO"
        assert node.shown() == "fuse"
        node.refused(6, "wait", node.m)
        assert node.shown() == "fuse"
    hub.faults.clear()
    node.run("unmount", node.m)
    assert node.run("cache", "du", "--json").json["present_bytes"] < CHUNK  # nothing of the wrong file
    # A file of one chunk is checked first: its wrong bytes are never seen.
    # Later than the call returns, which would fail, too, if its fill had by then.
    hub.faults.add(match="/cdn/", times=None, wrong_bytes=True, delay_s=1.0)
    node.run("mount", "--lazy", "hf://acme/tiny", node.m)
    with Talker(node) as reader:
        assert reader.ask(f"open({str(node.m / 'model.safetensors')!r}, 'rb').read()") == "EIO"
    node.run("unmount", node.m)
    node.clean()


def test_stores_without_digests(node: Node, hub: HubServer) -> None:
    store = node.place / "store"
    store.mkdir()
    (store / "weights.bin").write_bytes(MODEL)
    node.run("mount", f"file://{store}", node.m)
    assert node.read(node.m / "weights.bin") == MODEL
    node.run("unmount", node.m)
    # The disk is held to what landed.
    (blob,) = (path for path in (node.cache / "blobs").glob("*/*"))
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(CHUNK + 5)
        file.write(bytes([MODEL[CHUNK + 5] ^ 1]))
    assert "chunk 1 of 3" in node.run("cache", "verify", code=6).out
    node.run("mount", f"file://{store}", node.m)
    assert node.read(node.m / "weights.bin") == MODEL
    node.run("unmount", node.m)
    # Another modification time under a snapshot that is being fetched: an error, never mixed bytes.
    (store / "weights.bin").write_bytes(MODEL[::-1])
    node.run("mount", f"file://{store}", node.m)
    assert node.read(node.m / "weights.bin") == MODEL[::-1]
    node.run("unmount", node.m)
    node.clean()
