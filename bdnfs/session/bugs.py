"""What only a bug brings about: its traceback is kept in a file, for people get one line."""

import tempfile
import traceback
from collections.abc import Callable

_BUGS_KEPT_MAX = 10


def bug_line(error: BaseException) -> str:
    """Keep error's traceback (frames without their variables, so no secret); return what to say of it."""
    with tempfile.NamedTemporaryFile("w", prefix="bdnfs-bug-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return (
        f"this is a bug in bdnfs ({type(error).__name__}): please report it with {file.name}; "
        "nothing in the cache is lost"
    )


def bug_lines() -> Callable[[BaseException], str]:
    """Return what keeps the tracebacks of the first few errors that nobody expected."""
    kept = 0

    def bug(error: BaseException) -> str:
        nonlocal kept
        kept += 1
        return (
            bug_line(error)
            if kept <= _BUGS_KEPT_MAX
            else f"a bug in bdnfs ({type(error).__name__}), as before"
        )

    return bug
