"""Where things stand for a job: the reference's absolute places, or this user's own where those can't be made."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from trainer.definitions import TrainingProject
from trainer.engine.directory import JobDirectory
from trainer.engine.plan import Namespace
from trainer.jobs.record import Job

WORKING_DIR = "/b10/workspace"
SCRATCH_DIR = "/mnt/bt-scratch"
CHECKPOINT_DIR = "/mnt/ckpts"
_CAP_SYS_ADMIN = 21  # Linux: include/uapi/linux/capability.h
_TIMEOUT_S = 30.0
_HUB_VARIABLES = {"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"}


def namespace_to_be_had() -> tuple[Namespace, str]:
    """Return which namespaces a job can have here, and what to say where it is not the best one."""
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next(line for line in file if line.startswith("CapEff:"))
    if int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1:
        return "root", ""
    elsewhere = (
        "workspace, scratch, caches and checkpoints are directories of the trainer's home instead of /b10/workspace, "
        "/mnt/bt-scratch and so on (the BT_ variables say where)"
    )
    if shutil.which("unshare"):
        tried = subprocess.run(
            ["unshare", "--user", "--mount", "true"],
            capture_output=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        if tried.returncode == 0:
            return "user", f"without root the job runs in a user namespace: {elsewhere}"
    return "none", f"there is no right to a namespace here: nothing can be mounted, and {elsewhere}"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The places of one job, as it sees them; "" for one it does not have.

    binds: (directory on the host, place)
    """

    working: str
    scratch: str
    checkpoints: str
    loaded: str
    project_cache: str
    team_cache: str
    cache: str
    binds: tuple[tuple[str, str], ...]


def lay_out(
    project: TrainingProject, directory: JobDirectory, namespace: Namespace, caches: dict[str, Path]
) -> Layout:
    """Return where things stand. caches: the host's directories for `user_artifacts` and so on, by name."""
    runtime = project.job.runtime
    rooted = namespace == "root"
    cache = runtime.cache.mount_base_path if caches else ""
    checkpointing, loading = runtime.checkpointing_config, runtime.load_checkpoint_config
    binds: dict[str, str] = {}

    def place(source: Path, location: str) -> str:
        if not rooted:
            return str(source)
        binds[location.rstrip("/")] = str(source)
        return location.rstrip("/")

    working = place(directory.workspace, WORKING_DIR)
    checkpoints = ""
    if checkpointing.enabled:
        checkpoints = place(directory.checkpoints, checkpointing.checkpoint_path or CHECKPOINT_DIR)
    cached = {name: place(source, f"{cache}/{name}") for name, source in caches.items()}
    return Layout(
        working=working,
        scratch=SCRATCH_DIR if rooted else str(directory.path / "scratch"),
        checkpoints=checkpoints,
        loaded=loading.download_folder if loading is not None and loading.enabled else "",
        project_cache=cached.get("user_artifacts", ""),
        team_cache=cached.get("team_artifacts", ""),
        cache=cache if rooted else str(next(iter(caches.values())).parent) if caches else "",
        # A place inside another one comes after it.
        binds=tuple((source, location) for location, source in sorted(binds.items())),
    )


def variables(
    job: Job, project: TrainingProject, layout: Layout, gpus: int, visible: str | None
) -> dict[str, str]:
    """Return the variables the job's commands get from the trainer. visible: CUDA_VISIBLE_DEVICES, None: as it is."""
    found = {
        "BT_TRAINING_JOB_ID": job.id,
        "BT_TRAINING_PROJECT_ID": job.project_id,
        "BT_TRAINING_JOB_NAME": job.name,
        "BT_TRAINING_PROJECT_NAME": job.project,
        "BT_NUM_GPUS": str(gpus),
        "BT_RETRY_COUNT": str(job.retry_count),
        "BT_WORKING_DIR": layout.working if project.job.enable_baseten_workdir else "",
        "BT_SCRATCH_DIR": layout.scratch,
        "TMPDIR": layout.scratch,
        "BT_CHECKPOINT_DIR": layout.checkpoints,
        "BT_LOAD_CHECKPOINT_DIR": layout.loaded,
        "BT_PROJECT_CACHE_DIR": layout.project_cache,
        "BT_TEAM_CACHE_DIR": layout.team_cache,
        "BT_RW_CACHE_DIR": layout.cache,
    }
    found = {name: value for name, value in found.items() if value}
    if visible is not None:
        found["CUDA_VISIBLE_DEVICES"] = visible
    return found


def shows_hub_view(project: TrainingProject) -> bool:
    """Say whether the job finds its hf:// weights by their names, too, as if it had downloaded them.

    Not where its config says itself where the Hub's files are to be, nor where one name would mean two mounts.
    """
    runtime = project.job.runtime
    if runtime.cache.enabled and runtime.cache.enable_legacy_hf_mount:
        return False
    if _HUB_VARIABLES & runtime.environment_variables.keys():
        return False
    named = [source.source for source in project.job.weights if source.source.startswith("hf://")]
    at = {(name.partition("@")[0], name.partition("@")[2] or "main") for name in named}
    return bool(named) and len(at) == len(named)
