"""A job's log: what its processes print, and what the trainer says of it, each line with its time (UTC).

    2026-11-25T22:28:10.123Z step 1, loss 2.31
    2026-11-25T22:28:11.000Z trainer: COMPLETED

Lines are appended whole, so several processes may write. What can't be written (a full disk) never holds a job up.
"""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

LINE_BYTES_MAX = 64 << 10
# A job that prints without end must not fill its neighbours' disk.
LOG_BYTES_MAX = 1 << 30
_OWN = "trainer: "


def stamp(at_s: float) -> str:
    """Return a time as the log writes it."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s))
    return f"{whole}.{int(at_s % 1 * 1000):03d}Z"


class Log:
    """Appends to a log. bytes_max: what others print is left out where the log is larger than that."""

    def __init__(self, path: Path, bytes_max: int | None = None) -> None:
        self._bytes_max, self._full = bytes_max, False
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lost, self._torn = 0, False

    def close(self) -> None:
        os.close(self._fd)

    def say(self, text: str) -> None:
        """Add a line of the trainer's own."""
        self._write([f"{_OWN}{line}".encode() for line in text.splitlines()])

    def add(self, lines: Iterable[bytes]) -> None:
        """Add lines, stamped with now. Those that can't be written are counted, and the count is written later."""
        if self._bytes_max is not None and os.fstat(self._fd).st_size > self._bytes_max:
            if not self._full:
                self._full = True
                self.say(f"the log has reached {self._bytes_max:,} bytes; what follows is not kept")
            return
        self._write(lines)

    def _write(self, lines: Iterable[bytes]) -> None:
        now = stamp(time.time()).encode()
        listed = list(lines)
        data = b"".join(now + b" " + line + b"\n" for line in listed)
        if self._lost:
            data = b"%s %s%d lines could not be written here\n" % (now, _OWN.encode(), self._lost) + data
        data = b"\n" * self._torn + data
        try:
            while data:
                count = os.write(self._fd, data)
                self._torn = data[count - 1 : count] != b"\n"
                data = data[count:]
            self._lost = 0
        except OSError:
            self._lost += len(listed)


class Lines:
    """Cuts a stream of bytes into lines; a line that does not end is cut where it is too long."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > LINE_BYTES_MAX:
            lines.append(self._rest[:LINE_BYTES_MAX])
            self._rest = self._rest[LINE_BYTES_MAX:]
        return [line.rstrip(b"\r") for line in lines]

    def end(self) -> list[bytes]:
        rest, self._rest = self._rest, b""
        return [rest.rstrip(b"\r")] if rest else []


def read_log(path: Path) -> Iterator[str]:
    """Yield the log's lines, as far as they are there; none for a job that has said nothing yet."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for line in file:
                yield line.rstrip("\n")
    except FileNotFoundError:
        return


class Follower:
    """Reads on in a log where it stopped last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def more(self) -> list[str]:
        """Return the lines that have come since; a line that is half there comes when it is whole."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


def without_stamp(line: str) -> str:
    """Return what a log's line says, without its time."""
    return line.partition(" ")[2]


def last_lines(path: Path, count: int, *, own: bool = False) -> list[str]:
    """Return the last lines that the job itself printed, without their times. own: those of the trainer, too."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - count * 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    printed = [without_stamp(line) for line in lines]
    return [line for line in printed if line and (own or not line.startswith(_OWN))][-count:]
