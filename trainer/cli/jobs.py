"""view, stop, update, download: what is done with jobs that were pushed."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from trainer.cli.tables import Column, Table, output_option
from trainer.config import TrainerConfig, load_config
from trainer.engine.log import stamp
from trainer.engine.supervising import sweep
from trainer.errors import JobError
from trainer.jobs.record import Job, Phase
from trainer.jobs.store import Store

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@contextmanager
def opened() -> Iterator[tuple[TrainerConfig, Store]]:
    """Open the jobs of this user's home; jobs that lost their supervisor get a new one first."""
    own = load_config(os.environ)
    with Store(own.database) as store:
        sweep(own, store)
        yield own, store


def chosen(store: Store, job_id: str | None) -> Job:
    """Return the job called job_id, or the newest; raise JobError where there is none."""
    if job_id:
        return store.job(job_id)
    jobs = store.jobs()
    if not jobs:
        raise JobError("there is no job here yet; `trainer push config.py` makes one")
    return jobs[-1]


def seconds(phase: Phase) -> float:
    return (phase.ended_s or time.time()) - phase.began_s


def size(count: int | None) -> str:
    """Return bytes as people read them."""
    number, unit = float(count or 0), 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.1f} {_UNITS[unit]}" if unit else f"{int(number)} B"


def _shown_seconds(value: Any) -> str:
    return "" if value is None else f"{value:.1f} s"


@click.command(short_help="List jobs, or show one.")
@click.argument("job_id", required=False)
@click.option("--job-id", "job_option", metavar="JOB", help="The same as the argument.")
@click.option("--project", metavar="PROJECT", help="Only this project's jobs.")
@output_option
def view(job_id: str | None, job_option: str | None, project: str | None, output_format: str) -> None:
    """List jobs; or show one: its way so far, what each phase took and moved, and whether it held compute."""
    with opened() as (_, store):
        named = job_id or job_option
        if named:
            _show_job(store, store.job(named), output_format)
            return
        project_id = None if project is None else store.project(project).id
        columns = (
            Column("job_id", "Job"), Column("project_id", "Project ID"), Column("project", "Project"),
            Column("name", "Name"), Column("state", "State"), Column("priority", "Priority", right=True),
            Column("created", "Created"), Column("seconds", "Took", _shown_seconds, right=True),
            Column("checkpoints", "Checkpoints"), Column("error", "Error", lambda text: (text or "")[:60]),
        )  # fmt: skip
        rows = [
            (
                job.id,
                job.project_id,
                job.project,
                job.name,
                str(job.state),
                job.priority,
                stamp(job.created_s),
                round((job.updated_s if job.state.final else time.time()) - job.created_s, 3),
                job.sync,
                job.error,
            )
            for job in store.jobs(project_id=project_id)
        ]
        Table(columns, rows, empty="no jobs; `trainer push config.py` runs one").print(output_format)


def _show_job(store: Store, job: Job, output_format: str) -> None:
    phases = store.phases(job.id)
    columns = (
        Column("phase", "Phase"), Column("seconds", "Took", _shown_seconds, right=True),
        Column("held_compute", "Held compute", lambda held: "yes" if held else "no"),
        Column("total_bytes", "Needed", size, right=True),
        Column("moved_bytes", "Moved", size, right=True), Column("tiers", "From"),
    )  # fmt: skip
    if output_format == "json":
        print(json.dumps(_as_json(store, job, phases), indent=2))
        return
    rows = [
        (
            phase.name,
            round(seconds(phase), 3),
            phase.holds_compute,
            phase.total_bytes,
            sum(phase.tier_bytes.values()),
            ", ".join(f"{tier} {size(moved)}" for tier, moved in sorted(phase.tier_bytes.items())),
        )
        for phase in phases
    ]
    if output_format == "cli-table":
        _print_head(store, job, phases)
    Table(columns, rows).print(output_format)
    if output_format == "cli-table" and job.error:
        print(f"error: {''.join(char if char.isprintable() else '?' for char in job.error)}")


def _print_head(store: Store, job: Job, phases: list[Phase]) -> None:
    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    print(f"job {job.id} ({job.name}) of project {job.project} ({job.project_id}): {job.state}{code}")
    print("way: " + ", ".join(f"{each.state} {stamp(each.at_s)}" for each in store.transitions(job.id)))
    if job.gpu_indices:
        print(f"GPUs: {', '.join(map(str, job.gpu_indices))}")
    if job.sync:
        left = f"; `trainer checkpoints upload {job.id}` brings up what was left"
        print(f"checkpoints: {job.sync}{left if job.sync == 'SYNCING' and job.state.final else ''}")
    for note in job.notes:
        print(f"note: {note}")
    held = sum(seconds(phase) for phase in phases if phase.holds_compute)
    print(f"compute was held for {held:.1f} s, not held for {sum(map(seconds, phases)) - held:.1f} s")


def _as_json(store: Store, job: Job, phases: list[Phase]) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "name": job.name,
        "project_id": job.project_id,
        "project": job.project,
        "team": job.team or None,
        "state": str(job.state),
        "priority": job.priority,
        "availability_model": job.availability,
        "retry_count": job.retry_count,
        "gpus": list(job.gpu_indices),
        "exit_code": job.exit_code,
        "error": job.error or None,
        "checkpoints": job.sync or None,
        "notes": list(job.notes),
        "created_s": job.created_s,
        "transitions": [{"state": str(each.state), "at_s": each.at_s} for each in store.transitions(job.id)],
        "phases": [
            {
                "phase": phase.name,
                "began_s": phase.began_s,
                "ended_s": phase.ended_s,
                "seconds": round(seconds(phase), 3),
                "held_compute": phase.holds_compute,
                "total_bytes": phase.total_bytes,
                "tier_bytes": phase.tier_bytes,
            }
            for phase in phases
        ],
    }


@click.command(short_help="End a job.")
@click.argument("job_id", required=False)
@click.option("--job-id", "job_option", metavar="JOB", help="The same as the argument.")
@click.option("--all", "every", is_flag=True, help="Every job that has not ended.")
def stop(job_id: str | None, job_option: str | None, every: bool) -> None:
    """End a job: SIGTERM to its processes, SIGKILL to those left after the grace. Returns when it has ended."""
    from trainer.engine.following import stop as stop_one
    from trainer.engine.following import wait_for_stop

    named = job_id or job_option
    if bool(named) == every:
        raise click.UsageError("name a job, or give --all")
    with opened() as (own, store):
        if named:
            print(f"job {named} is {stop_one(own, store, named).state}")
            return
        jobs = store.jobs(active=True)
        for job in jobs:  # all are asked first: they end side by side
            store.ask_to_stop(job.id)
        for job in jobs:
            print(f"job {job.id} is {wait_for_stop(own, store, job.id).state}")
        if not jobs:
            print("no job is active")


@click.command(short_help="Change what a waiting job waits by.")
@click.argument("job_id", required=False)
@click.option("--job-id", "job_option", metavar="JOB", help="The same as the argument.")
@click.option("--priority", type=int, help="Higher goes first.")
@click.option(
    "--availability-model", type=click.Choice(["dedicated", "spot"]), help="Kept, and not used here."
)
def update(
    job_id: str | None, job_option: str | None, priority: int | None, availability_model: str | None
) -> None:
    """Change the priority of a job that waits for its slot."""
    if priority is None and availability_model is None:
        raise click.UsageError("give --priority or --availability-model")
    with opened() as (own, store):
        job = store.change(
            chosen(store, job_id or job_option).id, priority=priority, availability=availability_model
        )
        sweep(own, store)  # it may be near its turn now
        print(f"job {job.id} has priority {job.priority}, {job.availability}")


@click.command(short_help="Get the files a job started with.")
@click.argument("job_id", required=False)
@click.option("--job-id", "job_option", metavar="JOB", help="The same as the argument.")
@click.option("--target-directory", metavar="DIR", default=".", help="Where to write; here if not given.")
@click.option("--no-unzip", is_flag=True, help="Write the archive itself.")
def download(job_id: str | None, job_option: str | None, target_directory: str, no_unzip: bool) -> None:
    """Write the workspace that a job (the last one, if none is named) started with to DIR."""
    import shutil

    from trainer.engine.directory import JobDirectory, read_json
    from trainer.storage.workspace import unpack_workspace

    with opened() as (own, store):
        job = chosen(store, job_id or job_option)
        directory = JobDirectory(own.job_directory(job.id))
        packed = read_json(directory.packed)
        if packed is None or not directory.archive.exists():
            raise JobError(f"job {job.id}: its workspace {directory.archive} is gone")
        target = Path(target_directory).absolute() / f"{job.name.replace('/', '-')}-{job.id}"
        if target.exists() or target.with_suffix(".tar").exists():
            raise JobError(f"{target} is there already; name another --target-directory, or move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        if no_unzip:
            target = target.with_suffix(".tar")
            shutil.copyfile(directory.archive, target)
        else:
            unpack_workspace(directory.archive, packed["digest"], target)
        print(f"the workspace of job {job.id} is in {target}")
