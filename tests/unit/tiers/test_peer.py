"""Peers as a tier, against real servers that misbehave in every way: right bytes or a miss, in time."""

import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from blake3 import blake3

from bdnfs.cluster import peers as peers_module
from bdnfs.cluster.owners import Rendezvous
from bdnfs.cluster.peers import Peers, open_peers
from bdnfs.core.errors import CredentialsError, SpecError
from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.manifest.model import FileEntry
from bdnfs.mirror.contents import Contents
from bdnfs.mirror.digests import Digests
from bdnfs.mirror.directory import DirectoryStore
from bdnfs.mirror.held import HeldFile
from bdnfs.spec.cluster import ClusterConfig, TlsConfig
from bdnfs.tiers import asking
from bdnfs.tiers.base import Chunk
from bdnfs.tiers.peer import PeerTier
from bdnfs.volume.records import CHUNKMAP_TYPE, chunkmap_of, digest_of
from tests.cluster import scripted
from tests.cluster.scripted import Behaviour, ScriptedPeer
from tests.commands.node import until
from tests.contract.servers import free_port

DEADLINE_S = 60.0
_dice = random.Random(8)
SMALL = {f"file-{number}": _dice.randbytes(3000 + number) for number in range(12)}
LARGE = _dice.randbytes(CHUNK_BYTES + 5000)


def hexdigest(data: bytes) -> str:
    return str(blake3(data).hexdigest())


CHUNKS = {hexdigest(data): data for data in (*SMALL.values(), LARGE[:CHUNK_BYTES], LARGE[CHUNK_BYTES:])}
FILES = tuple(FileEntry(path, len(data)) for path, data in (*SMALL.items(), ("large", LARGE)))


class Cluster:
    """Nodes of a cluster, this one the first, and the tier that asks them."""

    def __init__(self, directory: Path, nodes: list[ScriptedPeer], **config: Any) -> None:
        self.directory = directory
        self.nodes = {node.name: node for node in nodes}
        self.local = nodes[0]
        self.config = ClusterConfig(host="127.0.0.1", port=self.local.port, **config)
        self.warnings: list[str] = []
        self.store = DirectoryStore(str(directory))
        contents = Contents(self.store, "default", "weights")
        halves = [digest_of(LARGE[:CHUNK_BYTES]), digest_of(LARGE[CHUNK_BYTES:])]
        chunkmap = chunkmap_of(len(LARGE), halves)
        contents.put(digest_of(chunkmap), chunkmap, CHUNKMAP_TYPE)
        held = {path: HeldFile(len(data), chunk=digest_of(data)) for path, data in SMALL.items()}
        held["large"] = HeldFile(len(LARGE), chunkmap=digest_of(chunkmap))
        self.digests = Digests(contents, held)
        self.local.status = self.status(nodes)

    def status(self, nodes: list[ScriptedPeer], **shares: int) -> dict[str, Any]:
        members = [
            {"name": node.name, "address": node.address, "share_bytes": shares.get(node.name)}
            for node in nodes
        ]
        return {"name": self.local.name, "cluster": "default", "members": members, "version": 1}

    def order(self, chunk: Chunk) -> list[ScriptedPeer]:
        """The nodes as they are to be asked for a chunk."""
        ranking = Rendezvous(self.nodes)
        data = SMALL.get(chunk.file.path) or (LARGE[CHUNK_BYTES:] if chunk.number else LARGE[:CHUNK_BYTES])
        digest = blake3(data).digest()
        owner = ranking.owners(bytes.fromhex(each) for each in CHUNKS)[digest]
        return [self.nodes[name] for name in (owner, *(n for n in ranking.ranked(digest) if n != owner))]

    def run(self, task: Callable[["Cluster", PeerTier, Peers], Any]) -> None:
        """Run a task with the tier, its peers kept up to date."""

        async def main() -> None:
            with trio.fail_after(DEADLINE_S):
                async with open_peers(self.config, self.warnings.append) as peers:
                    tier = PeerTier(self.digests, FILES, peers)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(peers.keep, {})
                        await task(self, tier, peers)
                        nursery.cancel_scope.cancel()

        trio.run(main)

    def owned_by_others(self) -> list[Chunk]:
        """Chunks whose first two in order are not this node."""
        chunks = [Chunk("rev", file, 0) for file in FILES if file.path != "large"]
        return [chunk for chunk in chunks if self.local not in self.order(chunk)[:2]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    with ExitStack() as stack:

        def make(count: int = 5, tls: ssl.SSLContext | None = None, **config: Any) -> Cluster:
            nodes = [
                stack.enter_context(ScriptedPeer(f"node{number}", CHUNKS, tls)) for number in range(count)
            ]
            return Cluster(tmp_path / "mirror", nodes, **config)

        (tmp_path / "mirror").mkdir()
        yield make


async def got(tier: PeerTier, chunk: Chunk) -> tuple[str | None, bytes]:
    start, stop = chunk.range
    into = memoryview(bytearray(stop - start))
    found = await tier.get(chunk, into)
    return found, bytes(into)


def test_the_owner_is_asked_for_exactly_its_chunk(tmp_path: Path, cluster: Callable[..., Cluster]) -> None:
    token = tmp_path / "token"
    token.write_text("s3same-on-all\n")
    made = cluster(token_file=str(token))

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        for file in FILES:
            for number in range(file.chunks):
                chunk = Chunk("rev", file, number)
                tier_name, data = await got(tier, chunk)
                start, stop = chunk.range
                assert (tier_name, data) == ("peer", (SMALL.get(file.path) or LARGE)[start:stop])
                owner = cluster.order(chunk)[0]
                asked = owner.asked.pop()
                assert asked.path == f"/v1/chunks/default/weights/{hexdigest(data)}"
                assert asked.headers["range"] == f"bytes={start}-{stop - 1}"
                assert asked.headers["authorization"] == "Bearer s3same-on-all"
                assert asked.headers["bdnfs-node"] == "node0"
                kind = "b3map:" if file.path == "large" else "b3:"
                assert asked.headers["bdnfs-file"].startswith(kind)
        assert not any(node.asked for node in cluster.nodes.values())
        assert len({cluster.order(Chunk("rev", file, 0))[0].name for file in FILES}) > 2

    made.run(task)
    assert made.warnings == []


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (scripted.part, None),
        (scripted.wrong, "not that chunk's"),
        (scripted.other_range, "it answered 206 with"),
        (scripted.shorter, "it answered 200 with"),
        (scripted.long, "it answered 200 with"),
        (scripted.chunked, "it answered 200 with ''"),
        (scripted.garbage, "not HTTP"),
        (scripted.refusing, "refuses this node"),
        (scripted.short, ""),
        (scripted.failing, ""),
        (scripted.nobody, ""),
        (scripted.busy, ""),
    ],
)
def test_who_answers_wrongly_is_told_of_and_avoided(
    cluster: Callable[..., Cluster], behaviour: Behaviour, says: str | None
) -> None:
    """says: None: nothing is wrong; "": it is no case for a person."""
    made = cluster()
    chunk = made.owned_by_others()[0]
    owner, second = made.order(chunk)[:2]
    owner.behaviour = behaviour

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        for _ in range(2):
            assert await got(tier, chunk) == ("peer", SMALL[chunk.file.path])
        if says is None:
            assert (len(owner.asked), len(second.asked)) == (2, 0)
            return
        # The second time it was not asked at all.
        assert {asked.path for asked in owner.asked} == {second.asked[0].path}
        assert (len(owner.asked), len(second.asked)) == (1, 2)
        avoided = peers.members[owner.name]
        assert not avoided.is_asked
        left_s = avoided.avoided_until_s - trio.current_time()
        assert left_s > 40 if says else left_s <= 3

    made.run(task)
    if says:
        assert len(made.warnings) == 1
        assert says in made.warnings[0]
        assert owner.name in made.warnings[0]
    else:
        assert made.warnings == []


def test_after_three_it_is_a_miss(cluster: Callable[..., Cluster]) -> None:
    made = cluster()
    chunk = made.owned_by_others()[0]
    for node in made.nodes.values():
        node.behaviour = scripted.wrong

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        assert (await got(tier, chunk))[0] is None
        assert [len(node.asked) for node in cluster.order(chunk)] == [1, 1, 1, 0, 0]
        assert (await got(tier, chunk))[0] is None
        assert (await got(tier, chunk))[0] is None
        assert [len(node.asked) for node in cluster.order(chunk)] == [1, 1, 1, 1, 1]

    made.run(task)


def test_what_the_mirror_lacks_nobody_else_is_asked_for(cluster: Callable[..., Cluster]) -> None:
    made = cluster()
    chunk = made.owned_by_others()[0]
    made.order(chunk)[0].behaviour = scripted.missing

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        assert (await got(tier, chunk))[0] is None
        assert [len(node.asked) for node in cluster.order(chunk)] == [1, 0, 0, 0, 0]
        assert peers.members[cluster.order(chunk)[0].name].is_asked

    made.run(task)


def test_a_closed_port_costs_no_second(cluster: Callable[..., Cluster]) -> None:
    made = cluster()
    chunk = made.owned_by_others()[0]
    made.order(chunk)[0].stop()

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        owner, second = cluster.order(chunk)[:2]
        assert await got(tier, chunk) == ("peer", SMALL[chunk.file.path])
        assert not peers.members[owner.name].is_asked
        assert len(second.asked) == 1

    made.run(task)
    assert made.warnings == []


def test_who_gives_no_sign_of_life_is_passed_over(cluster: Callable[..., Cluster]) -> None:
    """Its machine is off the net, or it was stopped: connections stand, and nothing comes."""
    made = cluster()
    chunk = made.owned_by_others()[0]
    owner = made.order(chunk)[0]
    owner.is_mute = True

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        began_s = time.monotonic()
        assert await got(tier, chunk) == ("peer", SMALL[chunk.file.path])
        assert time.monotonic() - began_s >= 0.9
        assert not peers.members[owner.name].is_asked
        assert await got(tier, chunk) == ("peer", SMALL[chunk.file.path])
        assert len(cluster.order(chunk)[1].asked) == 2

    made.run(task)
    assert made.warnings == []


@pytest.mark.parametrize("behaviour", [scripted.hanging, scripted.stalling])
def test_who_hangs_on_one_chunk_has_another_asked_beside_it(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour
) -> None:
    monkeypatch.setattr(asking, "HANGS_S", 1.5)
    made = cluster()
    chunk = Chunk("rev", FILES[-1], 0)
    owner, second = made.order(chunk)[:2]
    owner.behaviour = behaviour

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        into = memoryview(bytearray(CHUNK_BYTES))
        assert await tier.get(chunk, into) == "peer"
        assert into == LARGE[:CHUNK_BYTES]
        assert len(second.asked) == 1
        # It is up: others may get other chunks of it.
        assert peers.members[owner.name].is_asked

    made.run(task)
    until(lambda: _is_ended(owner.asked[0].sock), "the question to be ended")


def _is_ended(sock: socket.socket) -> bool:
    """Say whether the other end has gone away."""
    try:
        return sock.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_who_is_slow_but_delivers_is_left_to_it(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that is full is slow for all: to ask another for the same would fill it even more."""
    monkeypatch.setattr(asking, "HANGS_S", 1.0)
    made = cluster()
    chunk = Chunk("rev", FILES[-1], 0)
    owner = made.order(chunk)[0]

    def slowly(asked: scripted.Asked) -> None:
        asked.head("200 OK", len(asked.data))
        step = len(asked.data) // 8
        for start in range(0, len(asked.data), step):
            asked.send(asked.data[start : start + step])
            asked.stopped.wait(0.3)

    owner.behaviour = slowly

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        found, data = await got(tier, chunk)
        assert (found, data) == ("peer", LARGE[:CHUNK_BYTES])
        assert [len(node.asked) for node in cluster.order(chunk)] == [1, 0, 0, 0, 0]

    made.run(task)


def test_a_trickle_is_given_up(cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_FLOOR_S", 1.5)
    made = cluster()
    chunk = Chunk("rev", FILES[-1], 0)
    owner = made.order(chunk)[0]

    def trickling(asked: scripted.Asked) -> None:
        asked.head("200 OK", len(asked.data))
        for number in range(500):
            asked.send(asked.data[number : number + 1])
            if asked.stopped.wait(0.1):
                return

    owner.behaviour = trickling

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        found, data = await got(tier, chunk)
        assert (found, data) == ("peer", LARGE[:CHUNK_BYTES])
        assert not peers.members[owner.name].is_asked

    made.run(task)


def test_a_cancelled_question_ends(cluster: Callable[..., Cluster]) -> None:
    made = cluster()
    chunk = made.owned_by_others()[0]
    owner = made.order(chunk)[0]
    owner.behaviour = scripted.hanging

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(got, tier, chunk)
            while not owner.asked:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        while not _is_ended(owner.asked[0].sock):
            await trio.sleep(0.01)

    made.run(task)


def test_what_our_own_node_brings_from_the_mirror_is_the_mirrors(cluster: Callable[..., Cluster]) -> None:
    made = cluster(count=2)
    for node in made.nodes.values():
        node.behaviour = scripted.from_mirror

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        found = {}
        for file in FILES[:-1]:
            chunk = Chunk("rev", file, 0)
            found[cluster.order(chunk)[0].name] = (await got(tier, chunk))[0]
        assert found == {"node0": "mirror", "node1": "peer"}

    made.run(task)


def test_members_come_and_go(cluster: Callable[..., Cluster]) -> None:
    made = cluster()

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        two = [cluster.nodes["node0"], cluster.nodes["node1"], cluster.nodes["node2"]]
        kept = peers.members["node1"]
        cluster.local.status = cluster.status(two, node2=0)
        await peers.refresh()
        assert sorted(peers.members) == ["node0", "node1"]  # who has no share owns nothing
        assert peers.members["node1"] is kept
        for file in FILES[:-1]:
            assert await got(tier, Chunk("rev", file, 0)) == ("peer", SMALL[file.path])
        assert not any(cluster.nodes[name].asked for name in ("node2", "node3", "node4"))
        cluster.local.status = None  # it can't be asked: those last known go on
        await peers.refresh()
        assert sorted(peers.members) == ["node0", "node1"]

    made.run(task)
    assert made.warnings == []


def test_without_a_node_here_one_warning_says_what_to_start(cluster: Callable[..., Cluster]) -> None:
    made = cluster()
    made.local.stop()

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        chunk = Chunk("rev", FILES[0], 0)
        assert (await got(tier, chunk))[0] is None
        await peers.refresh()
        again = ScriptedPeer("node0", CHUNKS, port=cluster.local.port, status=cluster.local.status)
        with again:
            await peers.refresh()
            cluster.nodes["node0"] = again
            assert (await got(tier, chunk))[0] == "peer"

    made.run(task)
    assert len(made.warnings) == 1
    assert "start `bdnfs node` here" in made.warnings[0]
    assert made.local.address in made.warnings[0]


def test_what_is_fetched_is_told_to_our_own_node(
    cluster: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "REFRESH_S", 0.02)
    made = cluster(count=1)
    counters = {"peer": 5}

    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            async with open_peers(made.config, made.warnings.append) as peers, trio.open_nursery() as nursery:
                nursery.start_soon(peers.keep, counters)
                while made.local.reports != [{"peer": 5}]:
                    await trio.sleep(0.01)
                counters.update(peer=12, mirror=3)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert {tier: sum(told.get(tier, 0) for told in made.local.reports) for tier in counters} == counters


def test_a_mirror_that_is_away_makes_a_miss(cluster: Callable[..., Cluster]) -> None:
    made = cluster()
    (chunkmap,) = made.directory.glob("bdn/**/b3/*/*/*")  # the one object there is
    chunkmap.unlink()

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        assert (await got(tier, Chunk("rev", FILES[-1], 0)))[0] is None
        assert (await got(tier, Chunk("rev", FILES[0], 0)))[0] is None
        assert not any(node.asked for node in cluster.nodes.values())

    made.run(task)


def test_a_file_that_the_mirror_does_not_hold_is_a_miss(cluster: Callable[..., Cluster]) -> None:
    made = cluster()

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        assert (await got(tier, Chunk("rev", FileEntry("new", 5), 0)))[0] is None

    made.run(task)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_mutual_tls(tmp_path: Path, cluster: Callable[..., Cluster]) -> None:
    """A certificate is good for the address that it names, here and on this machine's own node."""
    authority, other = trustme.CA(), trustme.CA()
    paths = TlsConfig(*(str(tmp_path / name) for name in ("cert.pem", "key.pem", "ca.pem")))

    def write(issuer: trustme.CA) -> None:
        issued = issuer.issue_cert("127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(paths.cert)
        issued.private_key_pem.write_to_path(paths.key)

    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(served)
    authority.issue_cert("127.0.0.1").configure_cert(served)
    authority.cert_pem.write_to_path(paths.ca)
    made = cluster(tls=served, count=3)
    made.config = ClusterConfig(
        host="127.0.0.1", port=made.local.port, advertise=made.local.address, tls=paths
    )

    async def task(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        assert await got(tier, Chunk("rev", FILES[0], 0)) == ("peer", SMALL[FILES[0].path])

    async def refused(cluster: Cluster, tier: PeerTier, peers: Peers) -> None:
        assert (await got(tier, Chunk("rev", FILES[0], 0)))[0] is None

    write(authority)
    made.run(task)
    assert made.warnings == []
    write(other)
    made.run(refused)
    assert len(made.warnings) == 1
    assert "can't be asked" in made.warnings[0]


def test_what_a_node_shows_must_be_there(tmp_path: Path) -> None:
    missing = ClusterConfig(port=free_port(), token_file=str(tmp_path / "token"))
    with pytest.raises(CredentialsError, match="write the token"):
        Peers(missing, print)
    (tmp_path / "token").write_text("two words")
    with pytest.raises(CredentialsError, match="no token has"):
        Peers(missing, print)
    paths = TlsConfig(*(str(tmp_path / name) for name in ("cert", "key", "ca")))
    with pytest.raises(SpecError, match=r"cluster\.tls"):
        Peers(ClusterConfig(port=free_port(), tls=paths), print)


ALL_CHUNKS = [Chunk("rev", file, number) for file in FILES for number in range(file.chunks)]


def test_one_owners_chunks_come_in_an_order_that_all_nodes_have(cluster: Callable[..., Cluster]) -> None:
    made = cluster()

    def by_owner(order: list[int]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for place in order:
            found.setdefault(made.order(ALL_CHUNKS[place])[0].name, []).append(place)
        return found

    async def task(_: Cluster, tier: PeerTier, peers: Peers) -> None:
        orders = [await tier.arranged(ALL_CHUNKS) for _ in range(20)]
        assert all(sorted(order) == list(range(len(ALL_CHUNKS))) for order in orders)
        assert all(by_owner(order) == by_owner(orders[0]) for order in orders)
        # But not all of them ask the same owner first.
        assert len({made.order(ALL_CHUNKS[order[0]])[0].name for order in orders}) > 1

    made.run(task)


def test_a_fill_that_knows_nobody_yet_is_ready_for_those_who_come(cluster: Callable[..., Cluster]) -> None:
    made = cluster()
    made.local.status = None

    async def task(_: Cluster, tier: PeerTier, peers: Peers) -> None:
        orders = [await tier.arranged(ALL_CHUNKS) for _ in range(5)]
        assert all(sorted(order) == list(range(len(ALL_CHUNKS))) for order in orders)
        assert len({tuple(order) for order in orders}) > 1

    made.run(task)
