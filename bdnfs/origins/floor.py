"""A floor under every answer: a server that trickles is as dead as one that is silent."""

import http.client
import io
import time
from typing import Any

# Answers before the answer (100 Continue, 103 Early Hints), and lines after its last chunk. Nobody sends as many.
INTERIM_MAX = TRAILERS_MAX = 100
_LINE_BYTES_MAX = 65536

# Below 16 KiB in a whole window nothing useful arrives any more: 8 MiB would take hours.
FLOOR_BYTES = 16 * 1024


class Floor:
    """Raises TimeoutError once fewer than FLOOR_BYTES come in stall_s of waiting.

    Only time spent waiting counts, so a reader that pauses is not taken for a slow server; nor
    does the wait for the first byte, which a timeout of its own bounds.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._waited_s = 0.0
        self._got_bytes = -1

    def note(self, count: int, waited_s: float) -> None:
        """Count the bytes that one wait brought."""
        if self._got_bytes < 0:
            self._got_bytes = 0
            return
        self._waited_s += waited_s
        self._got_bytes += count
        if self._waited_s >= self._stall_s:
            if count and self._got_bytes < FLOOR_BYTES:
                raise TimeoutError(f"{self._got_bytes} bytes in {self._waited_s:.1f} s")
            self._waited_s, self._got_bytes = 0.0, 0


class FlooredReader(io.RawIOBase):
    """A socket's bytes over a floor."""

    def __init__(self, raw: io.RawIOBase, stall_s: float) -> None:
        self._raw = raw
        self._floor = Floor(stall_s)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        began_s = time.monotonic()
        count: int | None = self._raw.readinto(buffer)
        self._floor.note(count or 0, time.monotonic() - began_s)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class FlooredResponse(http.client.HTTPResponse):
    """An answer, headers and body, read over the floor; the window is the socket's timeout."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        stall_s = sock.gettimeout()
        self._heads = 0
        if stall_s:
            self.fp: Any = io.BufferedReader(FlooredReader(self.fp.detach(), stall_s))

    def _read_status(self) -> tuple[str, int, str]:
        # http.client takes 103 for the answer, so that the real one would be the next request's; and it reads on for
        # as long as 100s come, however many.
        self._heads += 1
        if self._heads > INTERIM_MAX:
            raise http.client.HTTPException("interim answers without end")
        version, status, reason = super()._read_status()  # type: ignore[misc]
        interim = 100 < status < 200 and status != http.client.SWITCHING_PROTOCOLS
        return version, http.client.CONTINUE if interim else status, reason

    def _read_and_discard_trailer(self) -> None:
        for _ in range(TRAILERS_MAX):
            if self.fp.readline(_LINE_BYTES_MAX) in (b"\r\n", b"\n", b""):
                return
        raise http.client.HTTPException("trailers without end")
