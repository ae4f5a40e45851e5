"""The daemons behind FUSE mounts, as commands see them: started, followed, ended."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import msgspec

from bdnfs.cache.layout import Layout
from bdnfs.core.errors import DeadlineError, MountError
from bdnfs.core.progress import WAITING
from bdnfs.core.steps import reach
from bdnfs.session.children import Child, environment_without, remember, remembered, says_in_time
from bdnfs.session.control import DaemonSilentError, Event, connect
from bdnfs.session.directories import give_back, make
from bdnfs.session.interrupts import uninterrupted
from bdnfs.session.options import Options
from bdnfs.session.parts import Part
from bdnfs.session.records import DAEMON_MODULE, RecordDirectory
from bdnfs.session.unmounting import clear_record, records_at, unbind
from bdnfs.spec.config import Config
from bdnfs.spec.secret import Secrets

ShowEvent = Callable[[Event], None]

# A fresh interpreter on a loaded machine.
START_TIMEOUT_S = 120.0
_READABLE = ("ready", "fetching", "window")
_END_TIMEOUT_S = 30.0
_LAST_WORDS_S = 5.0


class DaemonEndedError(MountError):
    """A daemon ended before everything was here, and without a word."""


def start_daemon(
    layout: Layout,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    direct: str | None,
    undo: ExitStack,
) -> RecordDirectory:
    """Start the daemon and return once it listens; undo stops it and removes what was made."""
    from bdnfs.session.job import Job

    with uninterrupted():
        directory = RecordDirectory.make(layout)
        undo.callback(directory.remove)
        for location in [direct] if direct else [part.placed.location for part in parts]:
            undo.callback(give_back, layout, location)
            make(layout, location)
            undo.callback(unbind, location)  # what the daemon handed off already
    job = Job(
        config=config,
        options=options,
        secrets=secrets,
        placed=tuple(part.placed for part in parts),
        revisions=tuple(part.revision for part in parts),
        selections=tuple(part.selection for part in parts),
        direct=direct,
        starter=os.getpid(),
    )
    with (
        open(os.open(directory.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as log,
        uninterrupted(),
    ):
        process = Child(
            [sys.executable, "-m", DAEMON_MODULE, str(directory.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment_without({secret.value for secret in secrets.given.values()}),
            cwd="/",
            start_new_session=True,
            close_fds=True,
        )
        undo.callback(_end, layout, directory, process)
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(msgspec.json.encode(job))
    with process.stdout:
        if not says_in_time(process, START_TIMEOUT_S):
            raise DeadlineError(
                f"the mount's daemon (pid {process.pid}) has not begun to listen after {START_TIMEOUT_S:g} s; is the "
                f"machine overloaded, or the process stopped? Its log is {directory.log}. Try again"
            )
        if process.stdout.readline() != b"listening\n":
            raise MountError(f"the mount's daemon did not start: {_last_words(directory.log)}")
    remember(process)
    reach("mount:started")
    return directory


def _exit_of(directory: RecordDirectory) -> str:
    """Say how a daemon that this process started has ended, as far as that is known."""
    for process in remembered:
        if str(directory.path) in cast("list[str]", process.args):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return f", exit code {process.wait(_LAST_WORDS_S)}"
    return ""


def _last_words(log: Path) -> str:
    """Return the line of a daemon's log that says most of its end."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    for mark in (" ERROR ", "Fatal Python error", ""):
        for line in reversed(lines):
            if mark in line:
                return line.partition(" ERROR ")[2] or line
    return "it left nothing in its log"


def _end(layout: Layout, directory: RecordDirectory, process: "subprocess.Popen[bytes]") -> None:
    """Stop a daemon whose mount is not wanted any more, and wait for it."""
    process.terminate()  # by a signal, for it may not listen yet
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    record = directory.read()
    if record is not None:
        clear_record(layout, directory, record)  # what a daemon that had to be killed left


def follow(
    directory: RecordDirectory, deadline_s: float | None, show: ShowEvent, *, until: str = "whole"
) -> None:
    """Return once the daemon's mount is whole (or ready); raise its error, or DeadlineError."""
    try:
        with connect(directory.socket) as control:
            control.send("follow")
            for event in control.events(deadline_s):
                show(event)
                event.raise_error()
                if event.state == "window" and until == "whole":
                    raise MountError(
                        f"{_locations(directory)}: is mounted with --no-fill, so it will never be whole; unmount it "
                        "and mount it without, to have it all here"
                    )
                if event.state in ("whole", until) or (until == "ready" and _is_readable(event)):
                    return
        reason = "it said nothing more"
    except DeadlineError as error:
        raise DeadlineError(f"{_locations(directory)}: {error}; what has been fetched is kept") from error
    except DaemonSilentError as error:
        reason = str(error)
    # It may have ended because all was whole and handed off: the record says so.
    record = directory.read()
    if record is None or record.kind != "native":
        raise ended(directory, reason)


def _is_readable(event: Event) -> bool:
    return event.state in _READABLE or event.state.startswith(WAITING)


def ended(directory: RecordDirectory, reason: str) -> DaemonEndedError:
    """Return what to say of a daemon that is gone before its time."""
    return DaemonEndedError(
        f"the mount's daemon ended before everything was here ({reason}{_exit_of(directory)}); its last words: "
        f"{_last_words(directory.log)}"
    )


def _locations(directory: RecordDirectory) -> str:
    record = directory.read()
    return ", ".join(mounted.location for mounted in record.mounts) if record else "the mount"


def wait_for(layout: Layout, locations: Sequence[str], timeout_s: float | None, show: ShowEvent) -> None:
    """Return once everything mounted at or below the locations is whole."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    for location in locations:
        found = records_at(layout, location)
        if not found:
            raise MountError(f"{location}: nothing of bdnfs is mounted there; `bdnfs status` lists what is")
        for directory, record in found:
            if record.kind == "fuse":
                follow(directory, deadline_s, show)
