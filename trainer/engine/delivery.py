"""What the `bdnfs` command does for a job: resolve, mirror, fill; with its progress, errors, and an end on request."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.engine.log import Lines
from trainer.errors import TrainerError

_POLL_S = 0.1
_END_S = 30.0
_TIED = str(Path(__file__).with_name("tied.py"))
_OWN = "bdnfs: "


class DeliveryError(TrainerError):
    """`bdnfs` could not do it; the message is its own, and so is the exit code. killed: by a signal, not by us."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.killed = exit_code < 0
        self.exit_code = 128 - exit_code if exit_code < 0 else exit_code


class StopRequestedError(Exception):
    """A user asked for the job's end."""


@dataclass
class Moved:
    """What a call has moved so far. tier_bytes: by where it came from; total_bytes: what there is in all."""

    total_bytes: int = 0
    tier_bytes: dict[str, int] = field(default_factory=dict)


def bdnfs_command(*words: str, config: Path | None = None) -> list[str]:
    """Return the command line of a `bdnfs` call, of this very installation."""
    return [sys.executable, "-P", "-m", "bdnfs", *words, *(["--config", str(config)] if config else [])]


def call(
    command: Sequence[str],
    *,
    stopped: Callable[[], bool],
    say: Callable[[str], None],
    moved: Callable[[Moved], None] = lambda moved: None,
) -> str:
    """Run a `bdnfs` command; return what it printed.

    It ends with this process, however that ends. say: gets its warnings; moved: how far it is.
    Raises DeliveryError for what it can't do, StopRequestedError once stopped says so and it has ended.
    """
    process = subprocess.Popen(
        [sys.executable, "-S", _TIED, str(os.getpid()), str(int(signal.SIGTERM)), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        out, error = _follow(process, stopped, say, moved)
    finally:
        _end(process)
        process.stdout.close()
        process.stderr.close()
    if process.returncode:
        name = f"was killed by signal {-process.returncode}" if process.returncode < 0 else "failed"
        raise DeliveryError(error or f"`bdnfs {command[4]}` {name}", process.returncode)
    return out


def _follow(
    process: "subprocess.Popen[bytes]",
    stopped: Callable[[], bool],
    say: Callable[[str], None],
    moved: Callable[[Moved], None],
) -> tuple[str, str]:
    """Read until the process has closed its output; return that, and the last line of its errors."""
    assert process.stdout is not None
    assert process.stderr is not None
    out, lines, error = b"", Lines(), ""
    open_ = {process.stdout.fileno(), process.stderr.fileno()}
    looked_s = 0.0
    while open_:
        for fd in select.select(list(open_), [], [], _POLL_S)[0]:
            data = os.read(fd, 1 << 16)
            if not data:
                open_.discard(fd)
            elif fd == process.stdout.fileno():
                out += data
            else:
                for line in lines.feed(data):
                    error = _read_line(line.decode(errors="replace"), say, moved) or error
        if time.monotonic() > looked_s + _POLL_S:
            looked_s = time.monotonic()
            if stopped():
                raise StopRequestedError
    process.wait(_END_S)
    return out.decode(errors="replace"), error


def _read_line(line: str, say: Callable[[str], None], moved: Callable[[Moved], None]) -> str:
    """Take a line of standard error: progress as JSON, a warning, or else what went wrong, which is returned."""
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if "warning" in found:
                say(f"bdnfs: warning: {found['warning']}")
            elif "tier_bytes" in found:
                moved(
                    Moved(int(found["total_bytes"]), {str(k): int(v) for k, v in found["tier_bytes"].items()})
                )
            return ""
    if line.startswith("bdnfs: warning:"):
        say(line)
        return ""
    return line.removeprefix(_OWN)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process, kindly first; it is waited for, and bounded."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
