"""The `trainer` command: the only place that reads argv and the environment, and that prints errors."""

import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code (docs/trainer.md lists them). No traceback reaches the user."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    signal.signal(signal.SIGHUP, _as_interrupt)
    try:
        code = _run(argv)
    except KeyboardInterrupt as error:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        number = error.args[0] if error.args else int(signal.SIGINT)
        code = _fail(
            f"{'interrupted' if number == signal.SIGINT else 'terminated'}; jobs go on", 128 + number
        )
    sys.exit(code)


def _as_interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def _run(argv: Sequence[str] | None) -> int:
    import click

    from bdnfs import BdnfsError
    from trainer.errors import TrainerError

    try:
        from trainer.cli.commands import trainer

        code = trainer.main(args=argv, prog_name="trainer", standalone_mode=False)
        sys.stdout.flush()
    except (TrainerError, BdnfsError) as error:
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
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pydantic":
            code = _fail(_bug(error), 1)
        else:
            code = _fail(
                "pydantic is not installed; the trainer is an extra: pip install 'bdnfs[trainer]'", 2
            )
    except Exception as error:
        code = _fail(_bug(error), 1)
    return code if isinstance(code, int) else 0


def _bug(error: Exception) -> str:
    """Write the traceback to a file, and say where."""
    import tempfile
    import traceback

    said = f"a bug in the trainer ({type(error).__name__})"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="trainer-bug-", suffix=".txt", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return f"{said}: {error}"
    return f"{said}; please report it with {file.name}"


def _unheard() -> int:
    """The reader of our output went away (`| head`): nothing is wrong, and nobody is left to tell."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str, code: int) -> int:
    # Names come from configs and from upstream: none may move a terminal's cursor, or begin a line of its own.
    line = "".join(char if char.isprintable() else "?" for char in message)
    print(f"trainer: {line}", file=sys.stderr)
    return code
