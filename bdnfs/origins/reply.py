"""One HTTP answer: checked against what was asked for before a byte of it counts."""

import errno
from collections.abc import Iterator
from http.client import HTTPException
from types import TracebackType
from typing import Any, Self

import urllib3
from urllib3.exceptions import HTTPError

from bdnfs.core.errors import ChangedError, UnavailableError, UpstreamError
from bdnfs.origins.answers import content_length, content_range, network_error, shown, status_error
from bdnfs.origins.floor import FlooredResponse

PIECE_BYTES = 1 << 20
# What urllib3 and http.client raise.
FOREIGN = (HTTPError, HTTPException, OSError, ValueError)
# What is worth reading to the end so that its connection can be used again.
_DRAIN_BYTES_MAX = 64 * 1024
_CODINGS = ("gzip", "br", "deflate", "zstd", "compress")


class Hop:
    """One redirect on the way to an answer: where it stood, its status and headers, where it led."""

    def __init__(self, url: str, status: int, headers: Any, target: str) -> None:
        self.url, self.status, self.headers, self.target = url, status, headers, target


class Reply:
    """One answer, its body still to come. Leave its `with` block as soon as the body is read.

    An unread body costs the connection, a read one gives it back to the pool.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str, hops: list[Hop], doing: str) -> None:
        self.status = response.status
        self.headers = response.headers
        self.url = url
        self.hops = hops
        self._doing = doing
        self._response = response
        # http.client's answer below urllib3's, which copies every byte once more: 1.3 GB/s instead of 2.2.
        self._body: FlooredResponse = response._fp  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back if the body was read or is short, else close it."""
        try:
            length = content_length(self.headers)
            if kept := length is not None and length <= _DRAIN_BYTES_MAX:
                self._response.drain_conn()
            elif not self._body.isclosed():
                self._response.close()
            self._response.release_conn()
        except FOREIGN:
            if kept:
                self._response.close()

    @property
    def error(self) -> Exception:
        """The error that this answer's status means."""
        return status_error(self._doing, self.url, self.status, self.headers)

    def expect_range(self, start: int, stop: int, size: int) -> None:
        """Raise unless the body is exactly [start, stop) of a file of size bytes.

        ChangedError where the size is another, UpstreamError where the server answers other bytes.
        """
        said_start, said_stop, total = content_range(self.headers)
        if self.status == 416:
            if total is not None and total != size:
                raise self._changed(size, total)
            raise self._unusable(f"refuses bytes {start}-{stop - 1} of {size}")
        if self.status == 200:
            length = content_length(self.headers)
            if length is not None and length != size:
                raise self._changed(size, length)
            raise self._unusable(f"answered the whole file when asked for bytes {start}-{stop - 1}")
        if self.status != 206:
            raise self.error
        if total is not None and total != size:
            raise self._changed(size, total)
        length = content_length(self.headers)
        if (said_start, said_stop) != (start, stop) or length not in (None, stop - start):
            # In our words: the header itself may say anything.
            found = "no range that can be read" if said_stop is None else f"{said_start}-{said_stop - 1}"
            raise self._unusable(
                f"was asked for bytes {start}-{stop - 1} and answered {found} of {length} bytes"
            )
        self._expect_identity()

    def expect_whole(self, size: int) -> None:
        """Raise unless the body is a whole file of size bytes, as far as the headers say."""
        if self.status != 200:
            raise self.error
        length = content_length(self.headers)
        if length is not None and length != size:
            raise self._changed(size, length)
        self._expect_identity()

    def read_into(self, into: memoryview) -> None:
        """Fill `into` with the body; UnavailableError if it is shorter, UpstreamError if it is longer."""
        got = 0
        with self._mapped():
            while got < len(into):
                count = self._body.readinto(into[got:])
                if not count:
                    break
                got += count
        if got < len(into):
            raise self._truncated(got, len(into))
        if not self._at_end():
            raise self._unusable(f"sent more than the {len(into)} bytes that were asked for")

    def pieces(self, size: int | None = None) -> Iterator[memoryview]:
        """Yield the body, of exactly size bytes if given, in pieces valid until the next one.

        Raises UnavailableError where it ends early, ChangedError where it goes on after size.
        """
        buffer = memoryview(bytearray(PIECE_BYTES if size is None else min(PIECE_BYTES, size + 1)))
        expected, got = content_length(self.headers) if size is None else size, 0
        while True:
            with self._mapped():
                count = self._body.readinto(buffer)
            if not count:
                break
            got += count
            if size is not None and got > size:
                raise self._changed(size, got)
            yield buffer[:count]
        if expected is not None and got < expected:
            raise self._truncated(got, expected)

    def content(self, size_max: int) -> bytes:
        """Return the body; UpstreamError if it is longer than size_max bytes."""
        found = bytearray()
        for piece in self.pieces():
            found += piece
            if len(found) > size_max:
                raise self._unusable(f"sent more than {size_max} bytes where a short answer was due")
        return bytes(found)

    def _at_end(self) -> bool:
        if self._body.isclosed():
            return True
        with self._mapped():
            return not self._body.readinto(bytearray(1))

    def _expect_identity(self) -> None:
        coding = self.headers.get("Content-Encoding", "identity")
        if coding != "identity":
            said = coding if coding in _CODINGS else "otherwise"
            raise self._unusable(f"sent its bytes {said}-encoded though they were asked for as they are")

    def _mapped(self) -> "_Mapped":
        return _Mapped(self)

    def fail(self, error: BaseException) -> Exception:
        """Close the connection and return what error, met while reading, means."""
        self._response.close()
        if isinstance(error, ValueError):  # what a file object says that another thread closed
            error = ConnectionAbortedError(errno.ECONNABORTED, "closed on this side")
        return network_error(self._doing, self.url, error)

    def _truncated(self, got: int, expected: int) -> UnavailableError:
        self._response.close()
        return UnavailableError(
            f"{self._doing}: {shown(self.url)} broke off after {got} of {expected} bytes; try again"
        )

    def _unusable(self, found: str) -> UpstreamError:
        return UpstreamError(
            f"{self._doing}: {shown(self.url)} {found}; nothing of it was used. Check the server, "
            "or a proxy before it"
        )

    def _changed(self, size: int, found: int) -> ChangedError:
        return ChangedError(
            f"{self._doing}: {shown(self.url)} holds {found} bytes now, not the snapshot's {size}; "
            "it changed upstream. Mount it again for the new version"
        )


class _Mapped:
    """Turns foreign errors into ours; a class because a generator would cost more than a read."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, FOREIGN):
            raise self._reply.fail(error) from None
