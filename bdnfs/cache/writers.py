"""Who filled a chunk, and whether that process still lives: a held lock on `writers/<name>`."""

import os
import secrets
import threading
from contextlib import suppress

from bdnfs.cache.layout import Layout
from bdnfs.cache.locks import is_held, is_same_file, open_lock_file, try_lock


class Writers:
    """This process's name among the writers, and the liveness of the others."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._mutex = threading.Lock()
        self._own: tuple[bytes, int] | None = None

    @property
    def own(self) -> bytes:
        """This process's name in the rows of chunks it fills (8 bytes); made on first use.

        Raises SpaceError where the disk has no room even for its empty file.
        """
        with self._mutex:
            while self._own is None:
                name = secrets.token_bytes(8)
                path = self._layout.writers / name.hex()
                fd = open_lock_file(path)
                # A sweep may have found it between the two lines, not yet locked.
                if try_lock(fd, exclusive=True) and is_same_file(fd, path):
                    self._own = (name, fd)
                else:
                    os.close(fd)
            return self._own[0]

    def is_alive(self, writer: bytes) -> bool:
        own = self._own
        return (own is not None and writer == own[0]) or is_held(self._layout.writers / writer.hex())

    def sweep(self) -> None:
        """Delete what dead writers left."""
        for name in os.listdir(self._layout.writers):
            with suppress(ValueError, OSError):
                if not self.is_alive(bytes.fromhex(name)):
                    (self._layout.writers / name).unlink()

    def close(self) -> None:
        """Cease to be alive: chunks that are not synced yet are for others to adopt."""
        with self._mutex:
            if self._own is not None:
                name, fd = self._own
                with suppress(OSError):
                    (self._layout.writers / name.hex()).unlink(missing_ok=True)
                os.close(fd)
                self._own = None
