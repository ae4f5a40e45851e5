"""One peer, as it is asked for chunks; and this machine's own node, for the members. Blocking, thread-safe.

An answer counts only if it is exactly what was asked for, and its bytes only if they are the chunk's.
"""

import http.client
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, NamedTuple, cast

import msgspec
from blake3 import blake3

from bdnfs.cluster.access import Access, local_address
from bdnfs.cluster.connections import Connections, Exchange, status_error
from bdnfs.core.errors import UNREADABLE, BdnfsError, IntegrityError, UnavailableError, UpstreamError
from bdnfs.spec.cluster import ClusterConfig

# Where the peer had a chunk from: its share, what it has mounted itself, another peer, or the mirror.
Served = Literal["share", "node", "peer", "mirror"]

# Without a byte for so long nothing comes any more; whoever asks gives up earlier where there are others.
SILENCE_S = 30.0
# What a node says of itself it knows already.
_STATUS_S = 3.0
_JSON_BYTES_MAX = 16 << 20


class ChunkName(NamedTuple):
    """A chunk as peers name it.

    digest:      64 hex digits, BLAKE3 of its bytes
    start, stop: its range in the asker's file
    file:        the file's content, `b3:<hex>` or `b3map:<hex>`: who holds the file finds it there
    blob:        the id of the asker's blob in hex digits, "" for none: who is filling the same finds it there
    """

    org: str
    namespace: str
    digest: str
    start: int
    stop: int
    file: str
    blob: str = ""


class NodeMember(msgspec.Struct, frozen=True):
    """A member as a node lists it; share_bytes 0: it owns nothing."""

    name: str
    address: str
    share_bytes: int | None = None


class NodeStatus(msgspec.Struct, frozen=True):
    """What a fill needs to know of what `GET /v1/node` says."""

    name: str
    members: tuple[NodeMember, ...] = ()


class PeerClient:
    """One peer. heard_s: when its last byte came (monotonic clock), whatever it belonged to."""

    def __init__(self, address: str, access: Access, me: str = "", at: str | None = None) -> None:
        """address: HOST:PORT, whose host its certificate has to name; at: where it is, if not there; me: this node."""
        self.address = address
        self.heard_s = 0.0
        self._connections = Connections(address, at or address, access.tls)
        self._headers = {"User-Agent": "bdnfs", "Accept-Encoding": "identity"}
        if access.token is not None:
            self._headers["Authorization"] = f"Bearer {access.token.value}"
        if me:
            self.name(me)

    def name(self, me: str) -> None:
        """Say from now on which node asks."""
        self._headers["Bdnfs-Node"] = me

    def asking(self, chunk: ChunkName, into: memoryview, *, held: bool = False) -> "Ask":
        """Return a question for a chunk, to be run in a thread. held: only if it is there already."""
        return Ask(self, chunk, into, held=held)

    def fetch(self, chunk: ChunkName, into: memoryview, *, held: bool = False) -> Served | None:
        """Fill `into` with the chunk, verified; return where the peer had it from, None if it has not; as `Ask.run`."""
        return self.asking(chunk, into, held=held).run()

    def status(self) -> NodeStatus:
        """Ask what the peer, a node, is a member of; raises as `Ask.run`."""
        found = self._call("GET", "/v1/node", "asking for the cluster's members", None, _STATUS_S)
        try:
            return msgspec.json.decode(found, type=NodeStatus)
        except UNREADABLE:
            raise UpstreamError(
                f"asking {self.address} for the cluster's members: the answer can't be read; is it a bdnfs node?"
            ) from None

    def report(self, tier_bytes: Mapping[str, int]) -> None:
        """Tell this machine's node how many bytes a fill has got since it told last, by tier."""
        body = msgspec.json.encode(dict(tier_bytes))
        self._call("POST", "/v1/report", "telling what was fetched", body, _STATUS_S)

    def is_up(self) -> bool:
        """Ask whether anybody is there, for a few seconds."""
        with suppress(BdnfsError):
            self._call("GET", "/healthz", "asking whether it is up", None, _STATUS_S)
            return True
        return False

    def close(self) -> None:
        """Close the idle connections; those in use end with their answers."""
        self._connections.close()

    def exchange(self, doing: str, timeout_s: float) -> Exchange:
        return Exchange(self._connections, self._headers, doing, timeout_s)

    def _call(self, method: str, path: str, doing: str, body: bytes | None, timeout_s: float) -> bytes:
        doing = f"{doing}: {self.address}"
        with self.exchange(doing, timeout_s) as exchange:
            response = exchange.send(method, path, {"Content-Type": "application/json"} if body else {}, body)
            if not 200 <= response.status < 300:
                raise status_error(doing, response)
            found = response.read(_JSON_BYTES_MAX + 1)
            self.heard_s = time.monotonic()
            if len(found) > _JSON_BYTES_MAX:
                raise UpstreamError(f"{doing} sent more than {_JSON_BYTES_MAX} bytes; is it a bdnfs node?")
            return found


class Ask:
    """One question for a chunk. Another thread may look at it, and end it.

    heard_s:   when it began, or its last byte came (monotonic clock)
    got_bytes: of the chunk
    """

    def __init__(self, peer: PeerClient, chunk: ChunkName, into: memoryview, *, held: bool) -> None:
        self.peer, self._chunk, self._into, self._held = peer, chunk, into, held
        self.heard_s = time.monotonic()
        self.got_bytes = 0
        self._exchange = peer.exchange(f"asking {peer.address} for chunk {chunk.digest[:12]}", SILENCE_S)

    def run(self) -> Served | None:
        """Fill the buffer with the chunk, verified; return where the peer had it from, None if it has not.

        Raises UnavailableError (away, broke off, overloaded: then with retry_after_s), CredentialsError (it refuses
        this node), IntegrityError (what came is not the chunk), UpstreamError (any other answer).
        """
        chunk = self._chunk
        length = chunk.stop - chunk.start
        path = f"/v1/chunks/{chunk.org}/{chunk.namespace}/{chunk.digest}"
        asked = {"Range": f"bytes={chunk.start}-{chunk.stop - 1}", "Bdnfs-File": chunk.file}
        if chunk.blob:
            asked["Bdnfs-Blob"] = chunk.blob
        with self._exchange as exchange:
            response = exchange.send("GET", f"{path}?held=1" if self._held else path, asked)
            self._hear(0)
            if response.status == 404:
                return None
            if response.status not in (200, 206):
                raise status_error(exchange.doing, response)
            self._expect(response, length)
            while self.got_bytes < length:
                # What is there: http.client's own readinto waits for all of a piece.
                count = response.fp.readinto1(self._into[self.got_bytes : length])
                if not count:
                    raise UnavailableError(
                        f"{exchange.doing}: it broke off after {self.got_bytes} of {length} bytes"
                    )
                self._hear(count)
            response.close()  # the answer, not its connection
        if blake3(self._into).hexdigest() != chunk.digest:
            raise IntegrityError(f"{exchange.doing}: the bytes that came are not that chunk's")
        served = response.headers.get("Bdnfs-Tier")
        return cast(Served, served) if served in ("share", "peer", "mirror") else "node"

    def abort(self) -> None:
        """End it: its thread comes back at once, unless it is still connecting, and that takes a second at most."""
        self._exchange.abort()

    def _hear(self, count: int) -> None:
        self.got_bytes += count
        self.heard_s = self.peer.heard_s = time.monotonic()

    def _expect(self, response: http.client.HTTPResponse, length: int) -> None:
        """Raise IntegrityError unless the body is exactly the chunk, as far as the headers say."""
        said = response.headers.get("Content-Length", "")
        found = f"{response.status} with {said[:20]!r} bytes"
        right = said == str(length) and response.headers.get("Content-Encoding", "identity") == "identity"
        if response.status == 206:
            place = response.headers.get("Content-Range", "")
            found = f"{found} ({place[:60]!r})"
            right = right and place.startswith(f"bytes {self._chunk.start}-{self._chunk.stop - 1}/")
        if not right:
            raise IntegrityError(
                f"{self._exchange.doing}: it answered {found} to bytes {self._chunk.start}-{self._chunk.stop - 1}"
            )


def local_client(config: ClusterConfig, access: Access) -> PeerClient:
    """Return what asks this machine's own node. Its certificate names what the others reach it by."""
    at = local_address(config)
    named = (config.advertise or f"{socket.gethostname()}:{config.port}") if access.tls is not None else at
    return PeerClient(named, access, at=at)
