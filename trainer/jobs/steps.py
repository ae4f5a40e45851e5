"""The named steps between which a process of the trainer may die. Tests kill at each of them.

`reach` is a no-op in production, and refuses a name that is not in the list: a new step can't be
forgotten by the crash tests.
"""

from collections.abc import Callable

PUSH = ("push:packed", "push:recorded", "push:started")
SUPERVISOR = (
    "created:entered",
    "created:resolved",
    "created:whole",
    "created:queued",
    "deploying:entered",
    "deploying:whole",
    "deploying:prepared",
    "deploying:launched",
    "running:seen",
    "ending:exited",
    "ending:synced",
    "ending:cleared",
    "ending:committed",
)
RUNNER = (
    "runner:locked",
    "runner:placed",
    "runner:committed",
    "runner:begun",
    "runner:exited",
    "runner:told",
)
STEPS = PUSH + SUPERVISOR + RUNNER

_hook: Callable[[str], None] | None = None


def on_step(hook: Callable[[str], None] | None) -> None:
    """Call hook with each step's name as it is reached; None ends that. For tests."""
    global _hook
    _hook = hook


def reach(step: str) -> None:
    """Say that step has been reached."""
    if _hook is not None:
        if step not in STEPS:
            raise ValueError(f"unknown step {step!r}: name it in trainer.jobs.steps.STEPS")
        _hook(step)
