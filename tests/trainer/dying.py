"""The trainer's processes, killing themselves at named steps: each step once, whichever process comes there first.

Every interpreter of theirs loads a `sitecustomize` that calls `arm`.
"""

import os
import signal
from pathlib import Path

from trainer.jobs.steps import on_step

AT, PLACE = "TRAINER_DYING_AT", "TRAINER_DYING_PLACE"
_SITE = "from tests.trainer.dying import arm\narm()\n"


def environment(place: Path, root: Path, *at: str) -> dict[str, str]:
    """Return the variables with which whoever comes first to one of the steps kills itself there."""
    site = place / "site"
    site.mkdir(exist_ok=True)
    (place / "died").mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(_SITE)
    return {"PYTHONPATH": f"{site}:{root}", AT: ",".join(at), PLACE: str(place / "died")}


def died(place: Path) -> set[str]:
    """Return the steps at which somebody has killed itself."""
    return {path.name for path in (place / "died").iterdir()}


def arm() -> None:
    """Have this interpreter die where the environment says; no-op in any other."""
    steps, place = os.environ.get(AT), os.environ.get(PLACE)
    if not steps or not place:
        return
    at = set(steps.split(","))

    def note(step: str) -> None:
        if step not in at:
            return
        try:
            os.close(os.open(f"{place}/{step}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    on_step(note)
