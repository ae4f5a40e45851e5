"""Real commands and their daemons that kill themselves at a named step.

Every interpreter that such a command starts loads a `sitecustomize` that calls `arm`: the daemon and
the runner die as well as the command itself.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from bdnfs.core.steps import on_step

AT, AFTER, WHO, LOG = "DYING_AT", "DYING_AFTER", "DYING_WHO", "DYING_LOG"
_DAEMON = "bdnfs.session.daemon"
_SITE = "from tests.crash.dying import arm\narm()\n"


def environment(place: Path, root: Path, at: str, who: str, after: int = 0) -> dict[str, str]:
    """Return the variables with which who ("command" or "daemon") kills itself at a step, passed `after` times.

    The steps that anybody passes are noted in `place/steps`.
    """
    site = place / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(_SITE)
    (place / "steps").unlink(missing_ok=True)
    return {
        "PYTHONPATH": f"{site}:{root}",
        AT: at,
        AFTER: str(after),
        WHO: who,
        LOG: str(place / "steps"),
    }


def died_at(place: Path) -> str | None:
    """Return the step at which somebody has killed itself."""
    try:
        lines = (place / "steps").read_text().splitlines()
    except FileNotFoundError:
        return None
    return next((line.partition("died at ")[2] for line in lines if "died at " in line), None)


def arm() -> None:
    """Have this interpreter die where the environment says; no-op in any other."""
    at, log = os.environ.get(AT), os.environ.get(LOG)
    if at is None or log is None:
        return
    who = "daemon" if _DAEMON in sys.orig_argv else "command"
    after = int(os.environ[AFTER]) if who == os.environ[WHO] else sys.maxsize
    passed: dict[str, int] = {}
    turn = threading.Lock()

    def note(step: str) -> None:
        with turn:  # no other thread gets anywhere between the note and the end
            passed[step] = passed.get(step, 0) + 1
            dies = step == at and passed[step] > after
            with open(log, "a", encoding="ascii") as file:
                file.write(f"{who} {'died at ' if dies else ''}{step}\n")
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)

    on_step(note)
