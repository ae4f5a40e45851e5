"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from trainer.definitions import InteractiveSessionTrigger
from trainer.loading import Overrides

F = TypeVar("F", bound=Callable[..., Any])


def override_options(command: F) -> F:
    """Add what changes a config; `take_overrides` makes an Overrides of what the command gets."""
    for option in reversed(
        (
            click.option("--job-name", metavar="NAME", help="The job's name."),
            click.option("--team", metavar="NAME", help="The team whose training cache the job shares."),
            click.option("--accelerator", metavar="GPU[:COUNT]", help="Such as H200:8, or none."),
            click.option("--node-count", type=click.IntRange(1), help="How many machines."),
            click.option("--priority", type=int, help="Higher goes first; equal ones by age."),
            click.option(
                "--entrypoint",
                multiple=True,
                metavar="COMMAND",
                help="Run this instead of start_commands; may be given several times.",
            ),
            click.option(
                "--interactive",
                type=click.Choice([each.value for each in InteractiveSessionTrigger]),
                help="When a session opens.",
            ),
            click.option(
                "--interactive-timeout-minutes", type=click.IntRange(1), help="How long it stays open."
            ),
            click.option("--spot", is_flag=True, help="Take a machine that may be taken away."),
            click.option("--no-gpu-check", is_flag=True, help="Do not look for the GPUs that are asked for."),
        )
    ):
        command = option(command)
    return command


def take_overrides(options: dict[str, Any]) -> Overrides:
    """Take the options of `override_options` (but no_gpu_check) out of options."""
    names = Overrides.__dataclass_fields__
    return Overrides(**{name: options.pop(name) for name in list(options) if name in names})
