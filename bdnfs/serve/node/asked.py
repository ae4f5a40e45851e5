"""What a peer asks for: a request's path and headers, checked before anything is looked for. Pure."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from bdnfs.cache.share import ShareKey
from bdnfs.core.ranges import CHUNK_BYTES

PREFIX = "/v1/chunks/"
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}"
_PATH = re.compile(rf"{PREFIX}({_NAME})/({_NAME})/([0-9a-f]{{64}})")
_RANGE = re.compile(rb"bytes=([0-9]{1,18})-([0-9]{1,18})")
_FILE = re.compile(rb"(?:b3|b3map):[0-9a-f]{64}")
_BLOB = re.compile(rb"[0-9a-f]{64}")
# nginx sends all of a file where If-Range does not match, and nothing where another says so.
_CONDITIONS = frozenset(
    {b"if-range", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"}
)
_ONCE = frozenset({b"range", b"bdnfs-file", b"bdnfs-blob", b"bdnfs-node", b"authorization"})
_NODE_CHARS_MAX = 255


class Wrong(NamedTuple):
    """Why a request gets no chunk."""

    status: int
    message: str


class Asked(NamedTuple):
    """A chunk as a peer asks for it.

    start, stop: its range in the asker's file
    file:        the file's content name, None: not said
    blob:        the id of the blob that the asker fills, None: not said; equal where the origin is equal
    node:        who asks, "": not said
    held:        only if it is here already
    """

    key: ShareKey
    start: int
    stop: int
    file: str | None
    blob: bytes | None
    node: str
    held: bool

    @property
    def size(self) -> int:
        return self.stop - self.start


def asked_of(path: bytes, query: bytes, headers: Iterable[tuple[bytes, bytes]], org: str) -> Asked | Wrong:
    """Return what is asked for, or why it can't be had. path: as it was sent; org: this node's own.

    headers: names in lower case
    """
    match = _PATH.fullmatch(path.decode("latin-1"))
    if match is None:
        return Wrong(400, "a chunk's path is /v1/chunks/<org>/<namespace>/<64 hex digits>")
    if match[1] != org:
        return Wrong(403, "this node serves another tenant")
    if query not in (b"", b"held=1"):
        return Wrong(400, "the only query is held=1")
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _CONDITIONS:
            return Wrong(400, f"{name.decode()} is not taken: a chunk never changes")
        if name in _ONCE:
            if name in found:
                return Wrong(400, f"{name.decode()} is there twice")
            found[name] = value
    span = _RANGE.fullmatch(found.get(b"range", b""))
    if span is None:
        return Wrong(400, "a chunk needs exactly one Range: bytes=<first>-<last>, its place in the file")
    start, stop = int(span[1]), int(span[2]) + 1
    if start % CHUNK_BYTES or not start < stop <= start + CHUNK_BYTES:
        return Wrong(400, f"bytes {start} to {stop} are no chunk of {CHUNK_BYTES} bytes")
    file, blob = found.get(b"bdnfs-file"), found.get(b"bdnfs-blob")
    if (file and not _FILE.fullmatch(file)) or (blob and not _BLOB.fullmatch(blob)):
        return Wrong(400, "Bdnfs-File is b3:<64 hex> or b3map:<64 hex>, Bdnfs-Blob 64 hex digits")
    return Asked(
        ShareKey(match[1], match[2], match[3]),
        start,
        stop,
        file.decode() if file else None,
        bytes.fromhex(blob.decode()) if blob else None,
        found.get(b"bdnfs-node", b"").decode("latin-1")[:_NODE_CHARS_MAX],
        query == b"held=1",
    )
