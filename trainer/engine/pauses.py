"""How often somebody looks whether a job has moved on: soon while it is young, seldomer later.

A job that runs has all CPUs to itself: whoever looks ten times a second for hours takes part of a step from each.
"""

import time

SHORTEST_S = 0.1
_LONGEST_S = 1.0
# Of the time that it has taken already.
_PART = 0.02


class Pauses:
    """Pauses between looks; each a fiftieth of the time since the beginning, or since the last news."""

    def __init__(self, longest_s: float = _LONGEST_S) -> None:
        self._longest_s = longest_s
        self._since_s = time.monotonic()

    @property
    def next_s(self) -> float:
        return min(self._longest_s, max(SHORTEST_S, _PART * (time.monotonic() - self._since_s)))

    def news(self) -> None:
        """Look soon again."""
        self._since_s = time.monotonic()

    def pause(self) -> None:
        time.sleep(self.next_s)
