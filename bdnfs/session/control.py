"""Talking to a mount's daemon: one JSON object a line over its unix socket."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from bdnfs.core import errors
from bdnfs.core.errors import UNREADABLE, BdnfsError, DeadlineError, MountError

# sun_path has 108 bytes; a cache directory may lie deeper, so its descriptor is the address.
_ANSWER_S = 10.0
# A thousand locations handed off, 4 KiB each, and a warning for each of them.
EVENT_BYTES_MAX = 8 << 20
# Who follows hears from a daemon several times a second; one that is silent for so long is stopped.
_SILENT_S = 60.0


class DaemonSilentError(MountError):
    """The daemon is gone, or has closed the connection without an answer."""


class Request(msgspec.Struct, frozen=True):
    """op: status | follow | bound | stop."""

    op: str


class Event(msgspec.Struct, frozen=True):
    """What a daemon says.

    state: resolving, ready, fetching, whole, window (never to be whole: `--no-fill`), failed, stopping; or "waiting
           for" somebody who mirrors the source, which can be read meanwhile
    """

    state: str
    pid: int
    total_bytes: int = 0
    present_bytes: int = 0
    files: int = 0
    files_whole: int = 0
    tier_bytes: dict[str, int] = {}
    warnings: tuple[str, ...] = ()
    error: str | None = None
    error_kind: str | None = None
    stands: bool = False  # it can be read, although its fill failed
    handed_off: tuple[str, ...] = ()
    device: str = ""  # of its FUSE session, as a mount table has it: `0:58`

    def raise_error(self) -> None:
        """Raise the daemon's error as the class it was there."""
        if self.error is not None:
            kind = getattr(errors, self.error_kind or "", BdnfsError)
            known = isinstance(kind, type) and issubclass(kind, BdnfsError)
            hint = "; the lazy mount stands as it is: `bdnfs unmount` it, then mount again"
            raise (kind if known else BdnfsError)(self.error + (hint if self.stands else ""))


class Control:
    """One connection to a daemon."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_ANSWER_S)
        directory = -1
        try:
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._socket.connect(f"/proc/self/fd/{directory}/{path.name}")
        except OSError as error:
            self._socket.close()
            raise DaemonSilentError(
                f"{path}: the mount's daemon does not answer ({error.strerror or error})"
            ) from error
        finally:
            if directory >= 0:
                os.close(directory)
        self._buffer = b""

    def close(self) -> None:
        self._socket.close()

    def send(self, op: str) -> None:
        """Send op; raise DaemonSilentError where the daemon is gone, or hears nothing."""
        try:
            self._socket.sendall(msgspec.json.encode(Request(op)) + b"\n")
        except OSError as error:
            raise DaemonSilentError(
                f"the mount's daemon does not listen any more ({error.strerror or error})"
            ) from error

    def ask(self, op: str) -> Event:
        """Send op and return the answer; raise MountError where none comes."""
        self.send(op)
        event = self._next(time.monotonic() + _ANSWER_S)
        if event is None:
            raise DaemonSilentError("the mount's daemon ended without an answer")
        return event

    def events(self, deadline_s: float | None) -> Iterator[Event]:
        """Yield events until the daemon closes.

        Raises DeadlineError at deadline_s (time.monotonic), MountError where it has gone silent.
        """
        while True:
            silent_s = time.monotonic() + _SILENT_S
            try:
                event = self._next(silent_s if deadline_s is None else min(silent_s, deadline_s))
            except DeadlineError:
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    raise
                raise MountError(
                    f"the mount's daemon has said nothing for {_SILENT_S:.0f} s; is it stopped? `bdnfs status` "
                    "clears the mount where that is so"
                ) from None
            if event is None:
                return
            yield event

    def _next(self, deadline_s: float) -> Event | None:
        while b"\n" not in self._buffer:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise DeadlineError("the mount's daemon has not got there in the time given")
            self._socket.settimeout(left_s)
            try:
                data: Any = self._socket.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return None
            if not data:
                return None
            self._buffer += data
            if len(self._buffer) > EVENT_BYTES_MAX:
                raise DaemonSilentError(f"the mount's daemon says more than {EVENT_BYTES_MAX} bytes at once")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return msgspec.json.decode(line, type=Event)
        except UNREADABLE:
            raise DaemonSilentError(
                "the mount's daemon answers what is no answer; is it another version?"
            ) from None


@contextmanager
def connect(path: Path) -> Iterator[Control]:
    """Connect to the daemon whose control socket lies at path; raise MountError where none answers."""
    control = Control(path)
    try:
        yield control
    finally:
        control.close()
