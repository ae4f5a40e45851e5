"""The one property of every parser: a value or an error of ours in one line, in bounded time and memory."""

import time
import unicodedata
from collections.abc import Callable
from typing import TypeVar

from hypothesis import settings

from bdnfs.core.errors import BdnfsError

T = TypeVar("T")

# How many examples, as the conftest has set it.
FUZZ = settings.get_profile("fuzz")

# Of this thread's own processor time, so that a busy machine doesn't count. What is meant is "not
# quadratic": the inputs are at most some hundred KiB.
CPU_S_MAX = 2.0
MESSAGE_CHARS_MAX = 6000


def judged(parse: Callable[[], T]) -> T | BdnfsError:
    """Return what parse returns, or the error of ours that it raises; any other error is the finding."""
    began_s = time.thread_time()
    found: T | BdnfsError
    try:
        found = parse()
    except BdnfsError as error:
        check_message(error)
        found = error
    took_s = time.thread_time() - began_s
    assert took_s < CPU_S_MAX, f"took {took_s:.1f} s of processor time"
    return found


def check_message(error: BdnfsError) -> None:
    """Check that an error is fit for a terminal: one line, nothing that moves the cursor, not endless."""
    said = str(error)
    assert said
    wrong = [char for char in said if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]
    assert not wrong, f"{wrong[:3]} in {said[:200]!r}"
    assert len(said) <= MESSAGE_CHARS_MAX, f"{len(said)} characters: {said[:200]!r}…"
