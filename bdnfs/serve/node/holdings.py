"""What is on this node already: in its share, or in a blob; and how it gets to whoever asked."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import trio

from bdnfs.cache.share import Share, ShareKey
from bdnfs.core.errors import BdnfsError
from bdnfs.serve.node.asked import Asked
from bdnfs.serve.node.blobs import Blobs, InBlob, read_blob
from bdnfs.serve.node.owning import Fetched

# The places of our nginx that nobody outside can name (bdnfs.serve.node.nginx).
SHARE_LOCATION, BLOBS_LOCATION = "/.share/", "/.blobs/"
SHARE, NODE = "share", "node"
_READS_MAX = 16
# A fill writes a chunk soon after it has it, and syncs it a little later.
_LOOKS_AFTER_S = (2.0, 15.0, 120.0)


class Accel(NamedTuple):
    """nginx is to send the file at a location: all of a share's, the client's Range of a blob."""

    tier: str
    location: str


class Inline(NamedTuple):
    """We send it. file_bytes: of the file whose range it is, None: it is sent as a whole."""

    tier: str
    data: memoryview
    file_bytes: int | None = None


class Holdings:
    """behind_nginx: files are sent by nginx, not read here."""

    def __init__(self, share: Share, blobs: Blobs, *, behind_nginx: bool) -> None:
        self._share, self._blobs, self._behind_nginx = share, blobs, behind_nginx
        self._threads = trio.CapacityLimiter(_READS_MAX)
        # Chunks of the share, as they were asked for: their blob may have them by the time that it is looked for.
        self._kept: list[OrderedDict[ShareKey, tuple[float, Asked]]] = [OrderedDict() for _ in _LOOKS_AFTER_S]

    async def find(self, asked: Asked) -> Accel | Inline | None:
        """Return the chunk if it is here: from the share, which costs least, else from a blob."""
        size = self._share.looks_sound(asked.key)
        if size is not None and (asked.file or asked.blob):
            self._look_later(asked)
        if size is not None and self._behind_nginx:
            return self._in_share(asked, size)
        if size is None and not self._share.holds(asked.key) and not (asked.file or asked.blob):
            return None
        return await trio.to_thread.run_sync(self._look, asked, limiter=self._threads)

    def has_come(self, asked: Asked) -> bool:
        """Say whether the chunk is in the share by now: its flight may have ended while `find` looked elsewhere."""
        return self._share.looks_sound(asked.key) is not None

    def fetched(self, asked: Asked, fetched: Fetched) -> Accel | Inline:
        """Return how a chunk that just came gets to whoever asked."""
        if fetched.kept and (asked.file or asked.blob):
            self._look_later(asked)
        if fetched.kept and self._behind_nginx and self._share.looks_sound(asked.key) == asked.size:
            return Accel(fetched.tier, SHARE_LOCATION + asked.key.path)
        return Inline(fetched.tier, fetched.data)

    def _look_later(self, asked: Asked, looks: int = 0) -> None:
        if looks < len(_LOOKS_AFTER_S):
            due_s = trio.current_time() + _LOOKS_AFTER_S[looks]
            self._kept[looks].setdefault(asked.key, (due_s, asked))

    async def tidy(self) -> None:
        """Let go of what may no longer be being sent, and of what is kept twice; to be called now and then."""
        if self._blobs.are_open:
            await trio.to_thread.run_sync(self._blobs.let_go)
        if len(self._share):
            await trio.to_thread.run_sync(self._share.shrink)
        for looks, kept in enumerate(self._kept):
            due = list(self._due(kept))
            twice = await trio.to_thread.run_sync(self._twice, due) if due else frozenset()
            for asked in due:
                if asked.key not in twice and self._share.holds(asked.key):
                    self._look_later(asked, looks + 1)

    def _due(self, kept: OrderedDict[ShareKey, tuple[float, Asked]]) -> Iterator[Asked]:
        while kept and next(iter(kept.values()))[0] <= trio.current_time():
            yield kept.popitem(last=False)[1][1]

    def _twice(self, looked: list[Asked]) -> frozenset[ShareKey]:
        with suppress(BdnfsError):
            keys = frozenset(asked.key for asked in self._blobs.covered(looked))
            for key in keys:
                self._share.drop(key)
            return keys
        return frozenset()

    def _look(self, asked: Asked) -> Accel | Inline | None:
        size = self._share.find(asked.key)
        if size is not None:
            return self._in_share(asked, size)
        blob = self._blobs.find(asked)
        return None if blob is None else self._in_blob(asked, blob)

    def _in_share(self, asked: Asked, size: int) -> Accel | Inline | None:
        if size != asked.size:  # the digest is of another length: no such chunk
            return None
        if self._behind_nginx:
            return Accel(SHARE, SHARE_LOCATION + asked.key.path)
        data = memoryview(bytearray(size))
        return Inline(SHARE, data) if self._share.read(asked.key, data) else None

    def _in_blob(self, asked: Asked, blob: InBlob) -> Accel | Inline | None:
        if self._behind_nginx:
            return Accel(NODE, f"{BLOBS_LOCATION}{blob.fd}")
        data = memoryview(bytearray(asked.size))
        return Inline(NODE, data, blob.size) if read_blob(blob, data) else None
