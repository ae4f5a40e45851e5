"""The chunks of files that a mirror holds, by their digests."""

import threading
from collections.abc import Mapping

from bdnfs.manifest.model import FileEntry
from bdnfs.mirror.contents import Contents
from bdnfs.mirror.held import HeldFile


class Digests:
    """The digests of the chunks of files that a mirror holds; a file's chunkmap is read once. Blocking.

    adopted: how often it has learned of more files
    """

    def __init__(self, contents: Contents, files: Mapping[str, HeldFile]) -> None:
        self.contents = contents
        self._files = files
        self._chunks: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self.adopted = 0

    def adopt(self, files: Mapping[str, HeldFile]) -> None:
        """Learn what the mirror holds by now."""
        self._files = {**self._files, **files}
        self.adopted += 1

    def fill(self, file: FileEntry, number: int, into: memoryview) -> bool:
        """Fill `into` with a chunk of a file; False where the mirror has no such file."""
        digests = self.of(file)
        if digests is None:
            return False
        self.contents.fill(digests[number], into)
        return True

    def holds(self, file: FileEntry) -> bool:
        held = self._files.get(file.path)
        return held is not None and held.size == file.size

    def of(self, file: FileEntry) -> list[str] | None:
        """Return the digests of the file's chunks, or None where the mirror has no such file."""
        held = self._files.get(file.path)
        if held is None or held.size != file.size:
            return None
        if held.chunk is not None:
            return [held.chunk]
        chunkmap = held.chunkmap or ""
        with self._lock:
            known = self._chunks.get(chunkmap)
        if known is None:
            known = [chunk.digest for chunk in self.contents.chunkmap(chunkmap, file.size)]
            with self._lock:
                self._chunks[chunkmap] = known
        return known
