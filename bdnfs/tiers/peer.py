"""The peers as a tier: a chunk's owner first, then whoever comes next in its order, each answer verified."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import trio

from bdnfs.cluster.client import ChunkName
from bdnfs.cluster.owners import Rendezvous
from bdnfs.cluster.peers import Peer, Peers
from bdnfs.core.errors import BdnfsError
from bdnfs.manifest.model import FileEntry
from bdnfs.mirror.digests import Digests
from bdnfs.tiers.asking import Asking, First, Then
from bdnfs.tiers.base import Chunk
from bdnfs.volume.digests import content_digest

# The mirror could not say which chunks a file has: it is not asked again at once.
_UNKNOWN_S = 30.0
# From so many chunks for each member on the scores alone are balanced (the luckiest of 100 members has 1.03 of its
# part), and to deal out the chunks of ten terabytes would take minutes.
_DEALT_MAX = 8192
_MAPS_AT_ONCE = 8


class PeerTier:
    """Asks the members of the cluster for the chunks of one snapshot.

    A miss where the mirror does not hold the file, or nobody gives the chunk. A failed peer never fails a read.
    """

    def __init__(
        self,
        digests: Digests,
        files: Sequence[FileEntry],
        peers: Peers,
        blobs: Mapping[str, bytes] | None = None,
    ) -> None:
        """files: of the whole snapshot. Who owns what depends on all its chunks, and has to be alike on all nodes.

        blobs: the ids of those that are filled, by the file's path, where others have them by the same
        """
        self._digests, self._files, self._blobs = digests, files, blobs or {}
        self._peers = peers
        self._chunks = sum(file.chunks for file in files)
        self._names: dict[str, list[ChunkName]] = {}
        self._unknown_until_s = 0.0
        self._dealing = trio.Lock()
        self._owners: dict[bytes, str] = {}
        self._dealt: object = None  # among whom, and of which files

    async def get(self, chunk: Chunk, into: memoryview) -> str | None:
        return await self.bring(chunk, into)

    async def bring(
        self, chunk: Chunk, into: memoryview, first: First | None = None, then: Then | None = None
    ) -> str | None:
        """As `get`, and more of it in the one thread: each change of threads costs as much as a small chunk.

        first: called before anybody is asked; False: nobody is. then: called with the bytes, once, wherever they are.
        Raises what these two raise. Nobody to ask: neither is called.
        """
        if not self._peers.any or not self._digests.holds(chunk.file):
            return None
        if trio.current_time() < self._unknown_until_s:
            return None
        await self._peers.reachable()
        try:
            name = await self._name(chunk)
            owner = await self._owner(bytes.fromhex(name.digest))
        except BdnfsError:
            # The mirror, which is asked next, says itself what is wrong with it.
            self._unknown_until_s = trio.current_time() + _UNKNOWN_S
            return None
        order = self._order(owner, bytes.fromhex(name.digest), self._peers.ranking)
        return await Asking(name, order, into, self._peers, first, then).run()

    async def arranged(self, chunks: Sequence[Chunk]) -> list[int]:
        """Return the places of chunks in the order in which to ask for them.

        One owner's chunks in one order, which is the same on all nodes, so that what the mirror sends to it is what all
        of them want of it next; but the owners in a random one, so that not all nodes ask the same one at once. In
        random order all through, eight nodes would take half as long again: most of their questions would be
        waiting for chunks that no owner has yet. In a random one where no member is known.
        """
        order = list(range(len(chunks)))
        random.shuffle(order)
        try:
            names = [await self._name(chunk) if self._digests.holds(chunk.file) else None for chunk in chunks]
            digests = [b"" if name is None else bytes.fromhex(name.digest) for name in names]
            owners = await self._owners_of(digests)
        except BdnfsError:
            return order
        places: dict[str | None, list[int]] = {}
        for place, chunk in enumerate(order):
            places.setdefault(owners[chunk], []).append(place)
        for owner, taken in places.items():
            if owner is not None:
                theirs = sorted((order[place] for place in taken), key=digests.__getitem__)
                for place, chunk in zip(taken, theirs, strict=True):
                    order[place] = chunk
        return order

    async def _owners_of(self, digests: Sequence[bytes]) -> list[str | None]:
        """Return each chunk's owner; None for b"", which is none of the mirror's."""
        ranking = self._peers.ranking
        await self._owner(b"")
        known = self._owners

        def owners() -> list[str | None]:
            return [
                (known.get(digest) or next(iter(ranking.ranked(digest)), None)) if digest else None
                for digest in digests
            ]

        return await trio.to_thread.run_sync(owners, abandon_on_cancel=True)

    async def _name(self, chunk: Chunk) -> ChunkName:
        names = self._names.get(chunk.file.path)
        if names is None:
            names = await trio.to_thread.run_sync(self._names_of, chunk.file, abandon_on_cancel=True)
            self._names[chunk.file.path] = names
        return names[chunk.number]

    def _names_of(self, file: FileEntry) -> list[ChunkName]:
        contents = self._digests.contents
        hexes = [digest.removeprefix("b3:") for digest in self._digests.of(file) or ()]
        content = content_digest(file.size, [bytes.fromhex(digits) for digits in hexes])
        blob = self._blobs[file.path].hex() if file.path in self._blobs else ""
        return [
            ChunkName(contents.org, contents.namespace, digits, *Chunk("", file, number).range, content, blob)
            for number, digits in enumerate(hexes)
        ]

    def _order(self, owner: str | None, digest: bytes, ranking: Rendezvous) -> Iterator[Peer]:
        """Yield whom to ask; who is to be avoided when its turn comes is passed over."""
        if owner is not None:
            yield from self._asked([owner])
        yield from self._asked(name for name in ranking.ranked(digest) if name != owner)

    def _asked(self, names: Iterable[str]) -> Iterator[Peer]:
        for name in names:
            peer = self._peers.members.get(name)
            if peer is not None and peer.is_asked:
                yield peer

    async def _owner(self, digest: bytes) -> str | None:
        """Return who owns a chunk; None: whoever ranks first."""
        ranking = self._peers.ranking
        if self._chunks >= _DEALT_MAX * len(ranking.names):
            return None
        state = (ranking.names, self._digests.adopted)
        if self._dealt != state:
            async with self._dealing:
                if self._dealt != state:
                    self._owners = await trio.to_thread.run_sync(self._deal, ranking, abandon_on_cancel=True)
                    self._dealt = state
        return self._owners.get(digest)

    def _deal(self, ranking: Rendezvous) -> dict[bytes, str]:
        with ThreadPoolExecutor(_MAPS_AT_ONCE) as pool:
            listed = pool.map(self._digests.of, self._files)
            chunks = [digest for digests in listed for digest in digests or ()]
        return ranking.owners(bytes.fromhex(digest.removeprefix("b3:")) for digest in chunks)
