"""`run`: everything is whole, then the command starts in a mount namespace of its own.

The namespace is made by a fresh interpreter (`bdnfs.session.runner`), which execs the command:
forking this process, with its threads and its locks, would do neither any good. This one stays,
holds the pins, passes signals on and tidies up.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from bdnfs.cache.jobs import job_here
from bdnfs.cache.layout import Layout
from bdnfs.core.errors import DeadlineError
from bdnfs.session.directories import give_back, make, show_views
from bdnfs.session.interrupts import uninterrupted
from bdnfs.session.keeper import kept
from bdnfs.session.mounting import may_mount
from bdnfs.session.parts import Part
from bdnfs.session.places import check_places
from bdnfs.session.records import location_locks
from bdnfs.session.runner import Binding, Start

if TYPE_CHECKING:
    from bdnfs.session.hub_view import View

# A fresh interpreter on a loaded machine, and a few mounts.
BEGIN_TIMEOUT_S = 120.0
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FROM_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)


def run_command(
    layout: Layout, parts: Sequence[Part], command: Sequence[str], hf_cache: str | None = None
) -> int:
    """Run command with every part bound at its location; return its exit code (128 + n for signal n).

    127 and 126 as a shell has them: not found, not executable. hf_cache: show the Hub's repositories
    there, and have the command look there, asking no network unless HF_HUB_OFFLINE says otherwise.
    Raises MountError where a location can't be used.
    """
    views: Mapping[str, View] = {}
    variables: dict[str, str] = {}
    if hf_cache is not None:
        from bdnfs.session.hub_view import plan_views

        views = plan_views(parts, hf_cache)
        variables = {"HF_HUB_CACHE": hf_cache, "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")}
    locations = [part.placed.location for part in parts]
    check_places(layout, locations)
    start = Start(
        bindings=tuple(Binding(str(part.tree), part.placed.location) for part in parts),
        command=tuple(command),
        user_namespace=not may_mount(),
        parent=os.getpid(),
    )
    snapshots = [part.snapshot_id for part in parts if part.snapshot_id]
    try:
        with job_here(layout.root):  # a node that serves from this cache yields
            return _run(layout, locations, views, snapshots, start, variables)
    except BaseException:
        _give_back(layout, locations)
        raise


def _give_back(layout: Layout, locations: Sequence[str]) -> None:
    with uninterrupted(), location_locks(layout, locations):
        for location in locations:
            give_back(layout, location)


def _run(
    layout: Layout,
    locations: Sequence[str],
    views: "Mapping[str, View]",
    snapshots: Sequence[str],
    start: Start,
    variables: Mapping[str, str],
) -> int:
    with ExitStack() as stack:
        # Until the command's mounts show, nobody may take the directories away.
        locks = stack.enter_context(ExitStack())
        locks.enter_context(kept(layout, snapshots))
        locks.enter_context(location_locks(layout, locations, shared=True))
        for location in locations:
            make(layout, location)
        if views:
            show_views(layout, views)
        job, to_child = _pipe(stack)
        begun, from_child = _pipe(stack)
        process = _start(job.fileno(), from_child.fileno(), variables)
        stack.enter_context(_passing_signals_to(process))
        job.close()
        from_child.close()
        with contextlib.suppress(BrokenPipeError), to_child:
            to_child.write(msgspec.json.encode(start))
        # Ends as the command begins, or the child ends.
        if not select.select([begun], [], [], BEGIN_TIMEOUT_S)[0]:
            process.kill()
            process.wait()
            raise DeadlineError(
                f"the process that is to become the command (pid {process.pid}) has not bound its mounts after "
                f"{BEGIN_TIMEOUT_S:g} s; was it stopped, or is the machine overloaded? Try again"
            )
        locks.close()
        code = process.wait()
        _give_back(layout, locations)  # while signals are still passed on: none gets in between
    return 128 - code if code < 0 else code


def _start(job: int, begun: int, variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start the child, deaf to Ctrl-C until it becomes the command: its interpreter would make a traceback of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "bdnfs.session.runner", str(job), str(begun)],
            pass_fds=(job, begun),
            env={**os.environ, **variables},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pipe(stack: ExitStack) -> tuple[BinaryIO, BinaryIO]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    return stack.enter_context(open(reader, "rb")), stack.enter_context(open(writer, "wb"))


@contextmanager
def _passing_signals_to(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Pass signals on to the command; Ctrl-C at a terminal reaches it from there, and is only outlived here."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number not in _FROM_KEYBOARD or not _is_in_front():
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (*_PASSED_ON, *_FROM_KEYBOARD)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_in_front() -> bool:
    """Say whether a terminal sends its keys' signals to this process, and so to the command too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
