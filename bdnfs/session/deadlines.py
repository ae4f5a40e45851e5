"""A deadline for blocking work that has none of its own."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from bdnfs.core.errors import DeadlineError

T = TypeVar("T")


def within(deadline_s: float | None, work: Callable[[], T], what: str) -> T:
    """Return what work returns; raise DeadlineError, saying what, where it takes longer.

    deadline_s: by time.monotonic, None for none: also then Ctrl-C ends the wait. Work that is given up goes
    on in its thread, which ends with the process; it must touch nothing but the network.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
    if failed:
        raise failed[0]
    if not done:
        raise DeadlineError(f"{what}: no answer in the time given; try again with more of it")
    return done[0]
