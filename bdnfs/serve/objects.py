"""The mirror's objects for those who may read them: whole, verified, few at a time."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar, TypeVarTuple

import trio
from blake3 import blake3

from bdnfs.core.errors import IntegrityError, NotFoundError, UpstreamError
from bdnfs.core.units import GIB, MIB, format_size
from bdnfs.mirror.store import Store
from bdnfs.serve.room import Room
from bdnfs.volume.records import CHUNK_TYPE, CHUNKMAP_TYPE, MANIFEST_TYPE

# Objects that are in memory at once, until the last byte is with the kernel: 64 chunks, so that some dozen
# slow readers don't stop the rest; an object that is larger is alone.
ROOM_BYTES = 512 * MIB
# As many of the mirror's requests at once.
READS_MAX = 16
# As bdnfs reads them itself (bdnfs.mirror.contents).
_OBJECT_BYTES_MAX = GIB
_TYPES = frozenset({CHUNK_TYPE, CHUNKMAP_TYPE, MANIFEST_TYPE})
T = TypeVar("T")
Args = TypeVarTuple("Args")
_MEND = "`bdnfs mirror verify --repair` fetches it again from upstream"


class Stored(NamedTuple):
    """An object, verified."""

    data: memoryview
    content_type: str


class Objects:
    """Reads objects of a store; whoever holds one holds its share of the room."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._room = Room(ROOM_BYTES)
        self._threads = trio.CapacityLimiter(READS_MAX)

    @asynccontextmanager
    async def read(self, key: str) -> AsyncIterator[Stored]:
        """Give the object at key, the last component of which is the hex digits of its BLAKE3.

        Raises NotFoundError, IntegrityError where its bytes are others, UpstreamError for one that is
        no kind of object, and whatever the store raises.
        """
        size = await self.run(self._store.size, key)
        if size is None:
            raise NotFoundError(f"{self._store.name}: {key} is not there")
        if size > _OBJECT_BYTES_MAX:
            raise IntegrityError(f"{self._store.name}: {key} is {format_size(size)} long, which no object is")
        async with self._room.taken(size):
            yield await self.run(self._read, key, size)

    async def run(self, call: Callable[[*Args], T], *arguments: *Args) -> T:
        """Call what blocks, and only reads, in a thread."""
        return await trio.to_thread.run_sync(call, *arguments, limiter=self._threads, abandon_on_cancel=True)

    def _read(self, key: str, size: int) -> Stored:
        data = memoryview(bytearray(size))
        content_type = self._store.fill(key, data)
        if content_type not in _TYPES:
            raise UpstreamError(
                f"{self._store.name}: {key} has the content type {content_type[:80]!r}, "
                f"which bdnfs doesn't serve; {_MEND}"
            )
        if blake3(data).hexdigest() != key.rpartition("/")[2]:
            raise IntegrityError(
                f"{self._store.name}: {key} does not hold the bytes that its name says; {_MEND}"
            )
        return Stored(data.toreadonly(), content_type)
