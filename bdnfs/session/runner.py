"""The child of `run`: makes the namespaces, binds the trees, becomes the command.

Started as `python -m bdnfs.session.runner JOB BEGUN`, two descriptors: what to do comes as JSON on the
first, and the second closes as the command begins. SIGINT is blocked until then.
"""

import os
import signal
import sys

import msgspec

from bdnfs.core.errors import BdnfsError
from bdnfs.fs.mounts import bind, unshare

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # POSIX shell, 2.8.2


class Binding(msgspec.Struct, frozen=True):
    tree: str
    location: str


class Start(msgspec.Struct, frozen=True):
    """bindings: what to bind where. user_namespace: needed for the right to. parent: who holds the pins."""

    bindings: tuple[Binding, ...]
    command: tuple[str, ...]
    user_namespace: bool
    parent: int


def main(argv: list[str]) -> int:
    """Become the command; return an exit code where that fails."""
    os.set_inheritable(int(argv[2]), False)
    with open(int(argv[1]), "rb") as pipe:
        content = pipe.read()
    if not content:
        return 1  # the parent died, and with it the pins
    start = msgspec.json.decode(content, type=Start)
    try:
        unshare(start.user_namespace)
        for binding in start.bindings:
            bind(binding.tree, binding.location)
    except BdnfsError as error:
        print(f"bdnfs: {error}", file=sys.stderr)
        return error.exit_code
    # From here on the mounts are the pins; before, it was the parent's locks.
    if os.getppid() != start.parent:
        return 1
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        os.execvp(start.command[0], start.command)
    except FileNotFoundError:
        print(f"bdnfs: run: {start.command[0]}: no such command", file=sys.stderr)
        return NOT_FOUND
    except OSError as error:
        print(f"bdnfs: run: {start.command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_EXECUTABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv))
