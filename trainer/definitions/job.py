"""A project and its job: what one config.py holds."""

from pydantic import Field

from trainer.definitions.base import Exact
from trainer.definitions.compute import Compute
from trainer.definitions.image import Image
from trainer.definitions.runtime import Runtime
from trainer.definitions.session import InteractiveSession
from trainer.definitions.weights import WeightsSource


class Workspace(Exact):
    """The files a job starts with: workspace_root and external_dirs, without exclude_dirs.

    Paths are relative to the config's directory, which is the root if none is named.
    """

    workspace_root: str | None = None
    external_dirs: list[str] = Field(default_factory=list)
    exclude_dirs: list[str] = Field(default_factory=list)


class TrainingJob(Exact):
    """One run, complete: what it needs, what it runs on, and what it runs."""

    image: Image
    compute: Compute = Field(default_factory=Compute)
    runtime: Runtime = Field(default_factory=Runtime)
    interactive_session: InteractiveSession | None = None
    name: str | None = None
    priority: int | None = None
    workspace: Workspace | None = None
    weights: list[WeightsSource] = Field(default_factory=list)
    enable_baseten_workdir: bool = True


class TrainingProject(Exact):
    """What jobs are gathered in; they share its training cache."""

    name: str
    job: TrainingJob
    team_name: str | None = None
