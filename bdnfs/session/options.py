"""What one call asks for, beyond its spec: frozen, and plain enough to hand to a daemon."""

import time

import msgspec

from bdnfs.spec.lock import Lock


class Options(msgspec.Struct, frozen=True):
    """How sources are resolved and shown.

    lock:      the revisions of spec.lock, or None
    locked:    fail where a branch has moved on from the lock
    offline:   never ask upstream anything
    refresh:   ask upstream what each branch is now; neither the lock nor the last answer will do
    lazy:      return at once, fill behind the readers
    fill:      False: fetch only what is read, keep no more than the capacity (`--no-fill`)
    timeout_s: the longest wait from began_s (time.monotonic) on, None for no limit
    """

    lock: Lock | None = None
    locked: bool = False
    offline: bool = False
    refresh: bool = False
    lazy: bool = False
    fill: bool = True
    timeout_s: float | None = None
    began_s: float = msgspec.field(default_factory=time.monotonic)

    @property
    def deadline_s(self) -> float | None:
        """When to give up, by time.monotonic; None: never."""
        return None if self.timeout_s is None else self.began_s + self.timeout_s

    def left_s(self, most_s: float) -> float:
        """How long there is still to wait, but no longer than most_s."""
        return (
            most_s if self.deadline_s is None else max(0.0, min(most_s, self.deadline_s - time.monotonic()))
        )
