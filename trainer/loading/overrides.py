"""What the command line changes of a config: the same fields, checked by the same definitions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainer.definitions import (
    AcceleratorSpec,
    AvailabilityModel,
    InteractiveSession,
    InteractiveSessionTrigger,
    TrainingProject,
)
from trainer.definitions.accelerator import parse_accelerator
from trainer.errors import ConfigError


@dataclass(frozen=True)
class Overrides:
    """None, or empty, where the config's own value stays.

    accelerator: such as `H200:8`, or `none` for a job without GPUs
    entrypoint:  commands to run instead of start_commands
    interactive: a trigger, such as on_failure
    """

    job_name: str | None = None
    team: str | None = None
    accelerator: str | None = None
    node_count: int | None = None
    priority: int | None = None
    entrypoint: Sequence[str] = ()
    interactive: str | None = None
    interactive_timeout_minutes: int | None = None
    spot: bool = False


def overridden(project: TrainingProject, given: Overrides) -> TrainingProject:
    """Return project with what is given put in its place; raise ConfigError for a value that can't stand there."""
    job = project.job
    compute = job.compute.model_copy(update=_compute(given))
    runtime = job.runtime
    if given.entrypoint:
        runtime = runtime.model_copy(update={"start_commands": list(given.entrypoint)})
    changes: dict[str, Any] = {"compute": compute, "runtime": runtime}
    if given.job_name is not None:
        changes["name"] = given.job_name
    if given.priority is not None:
        changes["priority"] = given.priority
    session = _session(job.interactive_session, given)
    if session is not None:
        changes["interactive_session"] = session
    changed = job.model_copy(update=changes)
    team = project.team_name if given.team is None else given.team
    return project.model_copy(update={"job": changed, "team_name": team})


def _compute(given: Overrides) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if given.accelerator is not None:
        try:
            none = given.accelerator.lower() == "none"
            changes["accelerator"] = None if none else AcceleratorSpec(**parse_accelerator(given.accelerator))
        except (ValueError, ValidationError) as error:
            raise ConfigError(f"--accelerator: {error}; or `none`") from None
    if given.node_count is not None:
        changes["node_count"] = given.node_count
    if given.spot:
        changes["availability_model"] = AvailabilityModel.SPOT
    return changes


def _session(session: InteractiveSession | None, given: Overrides) -> InteractiveSession | None:
    if given.interactive is None and given.interactive_timeout_minutes is None:
        return session
    changes: dict[str, Any] = {}
    if given.interactive is not None:
        changes["trigger"] = InteractiveSessionTrigger(given.interactive)
    if given.interactive_timeout_minutes is not None:
        changes["timeout_minutes"] = given.interactive_timeout_minutes
    return (session or InteractiveSession()).model_copy(update=changes)
