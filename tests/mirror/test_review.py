"""Which version is whose: branches, locks, and what stands in each other's way in a mirror."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from bdnfs.core.errors import CredentialsError
from bdnfs.manifest.model import FileEntry
from bdnfs.mirror.contents import Contents
from bdnfs.mirror.digests import Digests
from bdnfs.mirror.directory import DirectoryStore
from bdnfs.mirror.held import HeldFile
from bdnfs.mirror.lease import Holder, is_live, take
from bdnfs.tiers.base import Chunk
from bdnfs.tiers.fallback import Fallback
from bdnfs.tiers.mirror import Matching
from bdnfs.volume.records import CHUNK_TYPE, digest_of
from benchmarks.servers.hub import HubServer
from tests.commands.conftest import BIG, BIG_BYTES, TINY, forker, hub, nodes, served
from tests.commands.node import Node

__all__ = ["forker", "hub", "nodes", "served"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


@pytest.fixture
def mirrored(nodes: Callable[..., Node], place: Path) -> Callable[[], Node]:
    """Make nodes that share one mirror, a directory."""

    def make() -> Node:
        node = nodes()
        node.configure(mirror=str(place))
        return node

    return make


def leases(place: Path) -> list[Path]:
    return list((place / "leases").rglob("*.json"))


def test_a_branch_is_not_mistaken_for_another(mirrored: Callable[[], Node], hub: HubServer) -> None:
    hub.commit("acme/two", {"a.txt": b"main"})
    for branch in ("a/b", "a-b"):  # one tag
        hub.commit("acme/two", {"a.txt": branch.encode()}, branch)
    one = mirrored()
    for source in ("hf://acme/two", "hf://acme/two@a/b", "hf://acme/two@a-b"):
        one.run("mirror", source)
    hub.stop()
    node = mirrored()
    for source, content in (("hf://acme/two", b"main"), ("hf://acme/two@a/b", b"a/b")):
        assert "mirrored last" in node.run("mount", source, node.m).err
        node.holds({"a.txt": content})
        node.run("unmount", node.m)
    assert "could not be reached" in mirrored().refused(5, "prefetch", "hf://acme/two", "--refresh")


def test_a_removed_version_is_no_branch_any_more(mirrored: Callable[[], Node], hub: HubServer) -> None:
    node = mirrored()
    (source,) = node.run("mirror", "hf://acme/tiny", "--json").json["sources"]
    node.run("mirror", "rm", source["ref"])
    hub.stop()
    assert "could not be reached" in mirrored().refused(5, "prefetch", "hf://acme/tiny")


def test_a_window_gives_the_mirror_nothing(mirrored: Callable[[], Node], hub: HubServer, place: Path) -> None:
    node, other = mirrored(), mirrored()
    node.run("mount", "hf://acme/big", node.m, "--lazy", "--no-fill")
    assert (node.m / "config.json").read_bytes() == BIG["config.json"]
    assert not leases(place)
    (source,) = other.run("mirror", "hf://acme/big", "--json").json["sources"]
    assert source["moved_bytes"] == BIG_BYTES
    node.run("unmount", node.m)


def test_what_is_mirrored_lets_go_while_it_is_open(
    mirrored: Callable[[], Node], hub: HubServer, place: Path
) -> None:
    node = mirrored()
    hub.faults.add(match=r"model\.safetensors", delay_s=3.0, times=1)
    node.run("mount", "hf://acme/big", node.m, "--lazy")
    with open(node.m / "model.safetensors", "rb") as file:
        assert file.read(1) == BIG["model.safetensors"][:1]
        node.run("wait", node.m)
        assert not leases(place)
    node.run("unmount", node.m)


def test_a_locked_listing_is_not_mirrored_as_another(
    mirrored: Callable[[], Node], tmp_path: Path, place: Path
) -> None:
    node, source, spec = mirrored(), tmp_path / "source", tmp_path / "spec.yaml"
    source.mkdir()
    (source / "a").write_bytes(b"one")
    spec.write_text(f"weights: [{{source: 'file://{source}', mount_location: m}}]")
    node.run("lock", spec)
    (source / "a").write_bytes(b"other")
    for flags in ((), ("--locked",)):
        assert "is locked to" in node.refused(6, "mirror", spec, *flags)
    assert not place.exists()


def test_a_volume_lies_in_the_mirror_already(mirrored: Callable[[], Node], hub: HubServer) -> None:
    node = mirrored()
    (source,) = node.run("mirror", "hf://acme/tiny", "--json").json["sources"]
    (again,) = node.run("mirror", source["ref"].partition("@")[0], "--json").json["sources"]
    assert again == source | {"moved_bytes": 0}
    assert len(node.run("mirror", "ls", "--json").json["versions"]) == 1


def test_an_ingest_waits_for_a_gc(mirrored: Callable[[], Node], hub: HubServer, place: Path) -> None:
    place.mkdir()
    store = DirectoryStore(str(place))
    gc = take(store, "leases/default/gc.json", waiting=lambda _: False)
    assert gc is not None
    assert "collecting" in mirrored().refused(7, "mirror", "hf://acme/tiny", "--timeout", "6s")
    node = mirrored()
    node.run("prefetch", "hf://acme/tiny")  # a fill goes on without
    gc.release()
    store.close()
    assert not node.run("mirror", "ls", "--json").json["versions"]
    node.run("mirror", "hf://acme/tiny")


def test_no_tenant_is_the_tenant_default(nodes: Callable[..., Node], hub: HubServer, place: Path) -> None:
    node = nodes()
    for config in ({"mirror": str(place)}, {"mirror": str(place), "tenant": "default"}):
        node.configure(**config)
        node.run("prefetch", "hf://acme/tiny")
    node.run("purge", "--tenant", "default", "--yes")
    assert not list((node.cache / "blobs").glob("*/*"))
    assert not list((place / "bdn").rglob("*"))


def test_who_lives_in_another_container_is_not_taken_for_dead(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "mirror"))
    lease = take(store, "leases/default/a.json", waiting=lambda _: False)
    assert lease is not None
    ours = msgspec.json.decode((tmp_path / "mirror/leases/default/a.json").read_bytes(), type=Holder)
    dead = _ended()
    gone = msgspec.structs.replace(ours, pid=dead)
    assert is_live(ours)
    assert not is_live(gone)
    assert is_live(msgspec.structs.replace(gone, pids=ours.pids + 1))
    assert not is_live(msgspec.structs.replace(ours, renewed_s=time.time() - 7200))
    lease.release()
    store.close()


def _ended() -> int:
    pid = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(pid, 0)
    return pid


def test_an_object_of_another_length_is_put_again(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "mirror"))
    contents, data = Contents(store, "default", "weights"), b"all of it"
    assert contents.put(digest_of(data), data, CHUNK_TYPE)
    assert not contents.put(digest_of(data), data, CHUNK_TYPE)
    path = tmp_path / "mirror" / contents.key(digest_of(data))
    path.chmod(0o600)
    path.write_bytes(b"")  # torn
    assert contents.put(digest_of(data), data, CHUNK_TYPE)
    contents.fill(digest_of(data), memoryview(bytearray(len(data))))
    store.close()


def test_a_file_of_a_chunkmaps_bytes_breaks_nothing(
    mirrored: Callable[[], Node], hub: HubServer, place: Path
) -> None:
    node, other = mirrored(), mirrored()
    node.run("mirror", "hf://acme/big")
    (chunkmap,) = [
        data
        for path in (place / "bdn").rglob("*")
        if path.is_file() and (data := path.read_bytes()).startswith(b'{"_type":"chunkmap_header"')
    ]
    hub.commit("evil/one", {"x": chunkmap})
    other.configure(mirror=str(place), tenant="two")
    for source in ("hf://evil/one", "hf://acme/big"):
        other.run("mirror", source)
    assert "0 damaged" in other.run("mirror", "verify").out
    types = {path.read_bytes() for path in (place / ".bdnfs/types/bdn/two").rglob("*") if path.is_file()}
    assert any(b"chunkmap" in each for each in types)


class _Refusing(DirectoryStore):
    """A store whose credentials have expired."""

    asked = 0

    def get(self, key: str, bytes_max: int) -> None:  # type: ignore[override]
        self.asked += 1
        raise CredentialsError("they have expired")


class _Origin:
    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        into[:] = b"x" * len(into)
        return "origin"


def test_a_mirror_that_refuses_stops_no_fill(tmp_path: Path) -> None:
    store, file = _Refusing(str(tmp_path / "mirror")), FileEntry("a", 9 << 20, identity="1")
    held = {"a": HeldFile(file.size, chunkmap=f"b3:{'0' * 64}")}
    digests, warned = Digests(Contents(store, "default", "weights"), held), list[str]()

    class Mirror:
        async def get(self, chunk: Chunk, into: memoryview) -> str | None:
            digests.of(chunk.file)
            return None

    tier = Fallback(Mirror(), Matching(_Origin(), digests), warned.append)

    async def ask() -> None:
        for _ in range(10):
            assert await tier.get(Chunk("1", file, 0), memoryview(bytearray(4))) == "origin"

    trio.run(ask)
    assert len(warned) == 4
    assert store.asked == 11


def test_a_lock_moves_no_branch_back(nodes: Callable[..., Node], tmp_path: Path, hub: HubServer) -> None:
    node = nodes()
    node.configure(mirror=str(tmp_path / "mirror"))
    hub.commit("acme/moving", {"a.txt": b"one"})
    spec = node.spec({"source": "hf://acme/moving@main", "mount_location": "/m"})
    node.run("lock", spec)
    hub.commit("acme/moving", {"a.txt": b"two"})
    (new,) = node.run("mirror", "hf://acme/moving@main", "--json").json["sources"]
    (old,) = node.run("mirror", spec, "--json").json["sources"]
    assert old["ref"] != new["ref"]
    tags = {row["ref"]: row["tags"] for row in node.run("mirror", "ls", "--json").json["versions"]}
    assert tags == {new["ref"]: ["main"], old["ref"]: []}


def test_a_mirror_that_may_only_be_read_gives_what_it_has(
    nodes: Callable[..., Node], tmp_path: Path, hub: HubServer
) -> None:
    node = nodes()
    place = tmp_path / "mirror"
    node.configure(mirror=str(place))
    node.run("mirror", "hf://acme/tiny")
    lower = tmp_path / "read-only"
    lower.mkdir()
    subprocess.run(["mount", "--bind", "-o", "ro", place, lower], check=True)
    try:
        node.configure(mirror=str(lower))
        node.run("mount", "hf://acme/tiny", node.m)
        node.holds(TINY)
        node.run("mount", "hf://acme/big", node.place / "big")
        node.holds(BIG, node.place / "big")
        for where in (node.m, node.place / "big"):
            node.run("unmount", where)
    finally:
        subprocess.run(["umount", lower], check=True)


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A port that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        listening.settimeout(60)
        yield listening


@pytest.fixture
def unanswered(nodes: Callable[..., Node], silent: socket.socket) -> Node:
    node = nodes()
    node.configure(mirror="s3://bucket/prefix", upstream={"stall": "60s"})
    node.environment |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "hidden-key",
    }
    return node


def test_a_mirror_that_never_answers_is_not_waited_for(unanswered: Node, hub: HubServer) -> None:
    assert "given" in unanswered.refused(7, "mirror", "hf://acme/tiny", "--timeout", "2s")
    done = unanswered.run("prefetch", "hf://acme/tiny")
    assert "going on without the mirror" in done.err


def test_an_interrupt_ends_the_wait_for_a_mirror(
    unanswered: Node, silent: socket.socket, hub: HubServer
) -> None:
    waiting = unanswered.start("mirror", "hf://acme/tiny")
    with silent.accept()[0]:
        waiting.signal(signal.SIGINT)
        waiting.wait(130, 30)
