"""How fast a node sends: a bucket of bytes that fills at its rate; who would wait long is told so instead."""

import trio

# A peer that hears "not now" asks the next; one that hears nothing for a second hedges.
WAIT_S_MAX = 0.5
# What may be sent at once after a pause.
_BURST_S = 0.25


class Rate:
    """bytes_s: bytes a second, None: no cap. Of one thread."""

    def __init__(self, bytes_s: int | None) -> None:
        self.bytes_s = bytes_s
        self._free_at_s = 0.0  # when all that was promised has been sent, by trio's clock

    def change(self, bytes_s: int | None) -> None:
        """Send at another rate from now on; what was promised under the old one stands."""
        self.bytes_s = bytes_s

    def wait_s(self) -> float | None:
        """Return how long the next chunk would wait for its turn; None: longer than anybody should."""
        if self.bytes_s is None:
            return 0.0
        wait_s = max(0.0, self._free_at_s - _BURST_S - trio.current_time())
        return wait_s if wait_s <= WAIT_S_MAX else None

    def retry_after_s(self) -> int:
        """Return in how many seconds it is worth asking again, 1 at least."""
        return max(1, round(self._free_at_s - trio.current_time()))

    async def take(self, size_bytes: int) -> bool:
        """Wait for the turn of size_bytes; False, and nothing taken, where that is too long."""
        wait_s = self.wait_s()
        if wait_s is None:
            return False
        if self.bytes_s is not None:
            # Whoever takes pays, so that who comes next waits: a chunk may be more than a burst.
            self._free_at_s = max(self._free_at_s, trio.current_time()) + size_bytes / self.bytes_s
            await trio.sleep(wait_s)
        return True
