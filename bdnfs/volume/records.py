"""Manifests and chunkmaps: JSON lines in one canonical form, read strictly.

Format: the published BDN volume format, as `baseten-bdn` 0.1.1 reads it. A version is named by the
digest of its manifest's bytes, so the same content always has to give the same bytes: keys sorted after
`_type` and `_kind`, no spaces, UTF-8, no timestamp.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, NoReturn

import msgspec
from blake3 import blake3

from bdnfs.core.errors import IntegrityError, UpstreamError
from bdnfs.core.ranges import CHUNK_BYTES, chunk_range
from bdnfs.manifest.paths import check_path
from bdnfs.volume.containment import check_contained

SCHEMA = "v1"
MEDIA_TYPE_PREFIX = "application/vnd.baseten.bdn."
CHUNK_TYPE: Final = f"{MEDIA_TYPE_PREFIX}chunk.v1"
CHUNKMAP_TYPE: Final = f"{MEDIA_TYPE_PREFIX}chunkmap.v1"
MANIFEST_TYPE: Final = f"{MEDIA_TYPE_PREFIX}manifest.v1"
FILE_MODE, DIRECTORY_MODE = "0444", "0555"
# A manifest line is a path, a few digests; a hostile one shall not fill the memory.
LINE_BYTES_MAX = 1 << 20

_DIGEST = re.compile(r"b3:[0-9a-f]{64}")
_MODE = re.compile(r"[0-7]{3,7}")
_MTIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


class StoredChunk(NamedTuple):
    """A chunk of a file. digest: `b3:` and 64 hex digits, of its bytes; offset, length: bytes."""

    digest: str
    offset: int
    length: int


class VolumeFile(NamedTuple):
    """A file of a version.

    chunk:    its digest, if it is one chunk (so it is if it is empty), else None
    chunkmap: the digest of its chunkmap object, if it is of several chunks, else None
    """

    path: str
    size: int
    chunk: str | None = None
    chunkmap: str | None = None
    mode: str = FILE_MODE
    mtime: str | None = None


class Link(NamedTuple):
    """A symbolic link of a version; its target never leaves the tree."""

    path: str
    target: str


class Version(NamedTuple):
    """What a manifest says. total_size: bytes of all files."""

    files: tuple[VolumeFile, ...]
    directories: tuple[str, ...]
    links: tuple[Link, ...]
    provenance: dict[str, Any]
    total_size: int


def digest_of(data: bytes | memoryview) -> str:
    return f"b3:{blake3(data).hexdigest()}"


def relative_key(digest: str) -> str:
    """Return where an object lies below its namespace's prefix."""
    digits = digest.removeprefix("b3:")
    return f"objects/b3/{digits[:2]}/{digits[2:4]}/{digits}"


def object_key(org: str, namespace: str, digest: str) -> str:
    """Return an object's whole key."""
    return f"bdn/{org}/{namespace}/{relative_key(digest)}"


def encode_manifest(files: Sequence[VolumeFile], provenance: dict[str, str]) -> bytes:
    """Return the canonical manifest of a version with these files, and the directories they need."""
    directories = {parent for file in files for parent in _parents(file.path)}
    records: list[tuple[list[str], dict[str, Any]]] = [
        (path.split("/"), {"_type": "directory", "mode": DIRECTORY_MODE, "path": path})
        for path in directories
    ]
    records += [(file.path.split("/"), _file_record(file)) for file in files]
    # `/` sorts below every other byte.
    records.sort(key=lambda record: [part.encode() for part in record[0]])
    header = {
        "_type": "manifest_header",
        "entry_count": len(records),
        "manifest_schema": SCHEMA,
        "total_size": sum(file.size for file in files),
    }
    return _lines(
        [header, {"_type": "provenance", **dict(sorted(provenance.items()))}], (r for _, r in records)
    )


def encode_chunkmap(chunks: Sequence[StoredChunk]) -> bytes:
    """Return the canonical chunkmap of a file; chunks are contiguous from 0."""
    header = {
        "_type": "chunkmap_header",
        "chunk_count": len(chunks),
        "file_size": sum(chunk.length for chunk in chunks),
    }
    return _lines([header], ({"_type": "chunk", **_chunk_record(chunk)} for chunk in chunks))


def chunkmap_of(size: int, digests: Sequence[str]) -> bytes:
    """Return the canonical chunkmap of a file of size bytes, whose chunks have these digests, in order."""
    ranges = (chunk_range(size, number) for number in range(len(digests)))
    return encode_chunkmap(
        [
            StoredChunk(digest, start, stop - start)
            for digest, (start, stop) in zip(digests, ranges, strict=True)
        ]
    )


def _lines(first: Iterable[dict[str, Any]], records: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(msgspec.json.encode(record) + b"\n" for group in (first, records) for record in group)


def _file_record(file: VolumeFile) -> dict[str, Any]:
    times = {"mtime": file.mtime} if file.mtime else {}
    if file.chunk is not None:
        chunk = _chunk_record(StoredChunk(file.chunk, 0, file.size))
        return {
            "_type": "file",
            "_kind": "chunk",
            "chunk": chunk,
            "mode": file.mode,
            **times,
            "path": file.path,
        }
    assert file.chunkmap is not None
    return {
        "_type": "file",
        "_kind": "chunkmap",
        "digest": file.chunkmap,
        "mode": file.mode,
        **times,
        "path": file.path,
        "size": file.size,
        "target": _target(file.chunkmap),
    }


def _chunk_record(chunk: StoredChunk) -> dict[str, Any]:
    return {
        "digest": chunk.digest,
        "length": chunk.length,
        "offset": chunk.offset,
        "target": _target(chunk.digest),
    }


def _target(digest: str) -> dict[str, str]:
    return {"relative_key": relative_key(digest)}


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def decode_manifest(data: bytes, where: str) -> Version:
    """Read a manifest; where names it in errors.

    Raises IntegrityError for anything that is not the format: unknown records, paths that leave the
    tree or appear twice, counts and sizes that are not what the records add up to.
    """
    reader = _Reader(where, "manifest")
    provenance: dict[str, Any] = {}
    files: list[VolumeFile] = []
    directories: list[str] = []
    links: list[Link] = []
    for record in reader.records(data, "manifest_header"):
        match record.get("_type"):
            case "provenance" | "prefix_provenance" | "path_provenance":
                provenance = {key: value for key, value in record.items() if key != "_type"}
            case "directory":
                directories.append(reader.path(record))
            case "file":
                files.append(reader.file(record))
            case "symlink":
                links.append(Link(reader.path(record), reader.text(record, "target")))
            case other:
                reader.fail(f"has a record of the unknown type {other!r}")
    header = reader.header
    if header.get("manifest_schema") != SCHEMA:
        reader.fail(f"is of the schema {header.get('manifest_schema')!r}; this bdnfs reads {SCHEMA!r}")
    total_size = sum(file.size for file in files)
    reader.expect("entry_count", header.get("entry_count"), len(files) + len(directories) + len(links))
    reader.expect("total_size", header.get("total_size"), total_size)
    check_contained([*(file.path for file in files)], directories, dict(links), where)
    return Version(tuple(files), tuple(directories), tuple(links), provenance, total_size)


def decode_chunkmap(data: bytes, size: int, where: str) -> list[StoredChunk]:
    """Read the chunkmap of a file of size bytes; raise IntegrityError where its chunks aren't exactly that."""
    reader = _Reader(where, "chunkmap")
    chunks: list[StoredChunk] = []
    for record in reader.records(data, "chunkmap_header"):
        match record.get("_type"):
            case "chunk":
                chunks.append(reader.chunk(record))
            case other:
                reader.fail(f"has a record of the unknown type {other!r}")
    header = reader.header
    reader.expect("chunk_count", header.get("chunk_count"), len(chunks))
    reader.expect("file_size", header.get("file_size"), size)
    offset = 0
    for chunk in chunks:
        reader.expect("an offset", chunk.offset, offset)
        offset += chunk.length
        if not chunk.length and size:
            reader.fail("has an empty chunk")
        if offset < size and chunk.length != CHUNK_BYTES:
            reader.fail(
                f"has a chunk of {chunk.length} bytes before the last; {CHUNK_BYTES} is what a chunk has"
            )
    reader.expect("the sum of its chunks", offset, size)
    return chunks


class _Reader:
    """Takes records apart; whatever is wrong is an IntegrityError that names the line."""

    def __init__(self, where: str, what: str) -> None:
        self._where, self._what = where, what
        self._line = 0
        self.header: dict[str, Any] = {}  # once all records have been read

    def fail(self, reason: str) -> NoReturn:
        raise IntegrityError(
            f"{self._where}: the {self._what}'s line {self._line} {reason}; nothing of it is used. "
            "Mirror the source again, or have the volume published anew"
        )

    def expect(self, what: str, found: object, wanted: int) -> None:
        if found != wanted or not isinstance(found, int):
            self.fail(f"says {found!r} for {what} where it is {wanted}")

    def records(self, data: bytes, header: str) -> Iterator[dict[str, Any]]:
        """Yield every record but the one header, of that type, which is kept."""
        for record in self._all(data):
            if record.get("_type") != header:
                yield record
            elif self.header:
                self.fail("has two headers")
            else:
                self.header = record
        if not self.header:
            self.fail("has no header")

    def _all(self, data: bytes) -> Iterator[dict[str, Any]]:
        start = 0
        while start < len(data):
            stop = data.find(b"\n", start)
            stop = len(data) if stop < 0 else stop
            self._line += 1
            if stop - start > LINE_BYTES_MAX:
                self.fail(f"is longer than {LINE_BYTES_MAX} bytes")
            if stop > start:
                yield self._record(data[start:stop])
            start = stop + 1

    def _record(self, line: bytes) -> dict[str, Any]:
        try:
            return msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.fail(f"is no record ({error})")

    def text(self, record: dict[str, Any], key: str) -> str:
        value = record.get(key)
        if not isinstance(value, str):
            self.fail(f"has {value!r} for {key}")
        return value

    def number(self, record: dict[str, Any], key: str) -> int:
        value = record.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            self.fail(f"has {value!r} for {key}")
        return value

    def digest(self, record: dict[str, Any]) -> str:
        digest = self.text(record, "digest")
        if not _DIGEST.fullmatch(digest):
            self.fail(f"has the digest {digest!r}")
        target = record.get("target")
        if not isinstance(target, dict) or target.get("relative_key") != relative_key(digest):
            self.fail(f"puts {digest[:15]}… at {target!r}")
        return digest

    def chunk(self, record: dict[str, Any]) -> StoredChunk:
        length = self.number(record, "length")
        if length > CHUNK_BYTES:
            self.fail(f"has a chunk of {length} bytes; {CHUNK_BYTES} is the most a chunk has")
        return StoredChunk(self.digest(record), self.number(record, "offset"), length)

    def path(self, record: dict[str, Any]) -> str:
        if not _MODE.fullmatch(self.text(record, "mode")):
            self.fail(f"has the mode {record['mode']!r}")
        if record.get("mtime") is not None and not _MTIME.fullmatch(self.text(record, "mtime")):
            self.fail(f"has the mtime {record['mtime']!r}")
        # Manifests from before the rule have a leading slash.
        path = self.text(record, "path").lstrip("/")
        try:
            return check_path(path, self._where)
        except UpstreamError as error:
            self.fail(f"has a path that can't be in a tree: {error}")

    def file(self, record: dict[str, Any]) -> VolumeFile:
        path, mode, mtime = self.path(record), record["mode"], record.get("mtime")
        kind = record.get("_kind")
        if kind == "chunkmap":
            size = self.number(record, "size")
            return VolumeFile(path, size, chunkmap=self.digest(record), mode=mode, mtime=mtime)
        if kind != "chunk":
            self.fail(f"is a file of the kind {kind!r}, which this bdnfs does not read")
        found = record.get("chunk")
        if not isinstance(found, dict):
            self.fail(f"has {found!r} for chunk")
        chunk = self.chunk(found)
        if chunk.offset != 0:
            self.fail(f"is a file of one chunk that begins at {chunk.offset}")
        return VolumeFile(path, chunk.length, chunk=chunk.digest, mode=mode, mtime=mtime)
