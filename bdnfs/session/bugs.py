"""What only a bug brings about: its traceback is kept in a file, for people get one line."""

import tempfile
import traceback


def bug_line(error: BaseException) -> str:
    """Keep error's traceback (frames without their variables, so no secret); return what to say of it."""
    with tempfile.NamedTemporaryFile("w", prefix="bdnfs-bug-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return (
        f"this is a bug in bdnfs ({type(error).__name__}): please report it with {file.name}; "
        "nothing in the cache is lost"
    )
