"""Ctrl-C, SIGTERM and SIGHUP: all three end a command the same way, none in the middle of a step.

Only Python's handlers are used, never the signal mask: children would inherit that.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SOON_S = 0.01
# A signal that another thread takes, or that comes right before a call that blocks, is noted by Python and ends
# no call: the next tick does.
_TICK_S = 0.25


class Interrupts:
    """Lets all three raise KeyboardInterrupt, for as long as it is entered, and where that does no harm.

    number: the one that came, or None
    """

    def __init__(self) -> None:
        self.number: signal.Signals | None = None
        self._deferred: signal.Signals | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the signals; what is ignored (nohup's SIGHUP) stays so. On the main thread only."""
        handlers = {signal.SIGALRM: self._tick, **dict.fromkeys(_NUMBERS, self.interrupt)}
        before = {
            number: signal.signal(number, handler)
            for number, handler in handlers.items()
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
        }
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, known in before.items():
                signal.signal(number, known)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.Signals(number)
        if _is_delicate(frame):
            self._deferred = self.number
            signal.setitimer(signal.ITIMER_REAL, _SOON_S, _TICK_S)
            return
        # While trio runs it has a handler of its own for Ctrl-C, which knows where it may raise.
        handler = signal.getsignal(signal.SIGINT)
        if number != signal.SIGINT and callable(handler) and handler != self.interrupt:
            handler(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    def _tick(self, number: int, frame: FrameType | None) -> None:
        deferred, self._deferred = self._deferred, None
        if deferred is not None:
            signal.raise_signal(deferred)  # to whom it belongs by now


def _is_delicate(frame: FrameType | None) -> bool:
    """Say whether an exception at this point would break something, or be lost.

    Python's import system has locks that don't stand it, and what a destructor raises nobody gets.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@contextmanager
def left_to_trio() -> Iterator[None]:
    """Let trio take Ctrl-C, which it does from nobody but Python's own handler."""
    before = signal.getsignal(signal.SIGINT)
    ours = isinstance(getattr(before, "__self__", None), Interrupts)
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put interrupts off until what is inside is done: a step and the note of how to undo it, or the undoing.

    Another thread than the main one gets none anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    before = {
        number: signal.signal(number, note) for number in _NUMBERS if callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])
