"""Connections whose every wait ends: so many at once, and none to whom nothing can be sent."""

import trio

# A line slower than 13 kB/s carries no weights.
_PIECE_BYTES, _PIECE_S = 1 << 18, 20.0


class Line(trio.abc.HalfCloseableStream):
    """A client's connection. closed: set when one side has ended it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.closed = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send data; raise BrokenResourceError where the client takes none of it any more."""
        with memoryview(data) as view:
            for start in range(0, len(view), _PIECE_BYTES):
                try:
                    with trio.fail_after(_PIECE_S):
                        await self._stream.send_all(view[start : start + _PIECE_BYTES])
                except (trio.TooSlowError, trio.BusyResourceError) as error:
                    # Busy: hypercorn is just closing it, as after a request that is none.
                    self.abort()
                    raise trio.BrokenResourceError(f"no more can be sent: {error}") from None

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        received = await self._stream.receive_some(max_bytes)
        if not received:
            self.closed.set()
        return received

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self.closed.set()
        await self._stream.aclose()

    def abort(self) -> None:
        """End it here and now; whoever waits in it gets an error."""
        self.closed.set()
        self.socket.close()


class Lines(trio.abc.Listener[Line]):
    """Takes connections of one listener while there are slots; the others wait in the kernel."""

    def __init__(self, listener: trio.SocketListener, slots: trio.Semaphore) -> None:
        self._listener, self._slots = listener, slots

    async def accept(self) -> Line:
        """Return the next connection; its slot is the caller's to give back."""
        await self._slots.acquire()
        try:
            return Line(await self._listener.accept())
        except BaseException:
            self._slots.release()
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()
