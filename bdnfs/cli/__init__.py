"""The command line: the only place that reads argv and the environment, and that prints errors."""

import os
import signal
import sys
from collections.abc import Sequence

from bdnfs.core.errors import BdnfsError
from bdnfs.session.interrupts import Interrupts

_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code (README.md lists them). No traceback reaches the user."""
    interrupts = Interrupts()
    try:
        with interrupts.taken():
            code = _run(argv, interrupts)
    except KeyboardInterrupt:
        for each in _NAMES:
            signal.signal(
                each, signal.SIG_IGN
            )  # it is ending: a second Ctrl-C would only make a mess of that
        number = interrupts.number or signal.SIGINT
        code = _fail(f"{_NAMES[number]}; what has been fetched is kept", 128 + number)  # as shells have it
    sys.exit(code)


def _run(argv: Sequence[str] | None, interrupts: Interrupts) -> int:
    import click

    from bdnfs.cli.commands import bdnfs

    try:
        code = bdnfs.main(args=argv, prog_name="bdnfs", standalone_mode=False)
        sys.stdout.flush()
    except BdnfsError as error:
        code = _fail(str(error), error.exit_code)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (BrokenPipeError, SystemExit):  # nothing but a broken pipe makes click exit by itself here
        code = _unheard()
    except Exception as error:
        if interrupts.number is not None:
            raise KeyboardInterrupt from None
        from bdnfs.session.bugs import bug_line

        code = _fail(bug_line(error), 1)
    return code if isinstance(code, int) else 0


def _unheard() -> int:
    """The reader of our output went away (`| head`): nothing is wrong, and nobody is left to tell."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str, code: int) -> int:
    # Names come from upstream: none may move a terminal's cursor, or begin a line of its own.
    line = "".join(char if char.isprintable() else "?" for char in message)
    print(f"bdnfs: {line}", file=sys.stderr)
    return code
