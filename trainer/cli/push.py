"""push, recreate."""

import os
from typing import Any

import click

from trainer.cli.options import override_options, take_overrides


@click.command(short_help="Run the job that a config defines.")
@click.argument("config")
@click.option("--tail", is_flag=True, help="Show its log until it has ended.")
@click.option(
    "--writable",
    multiple=True,
    metavar="MOUNT_LOCATION",
    help="Let the job write to these weights; what it writes is in its scratch, and goes with it.",
)
@override_options
def push(config: str, tail: bool, writable: tuple[str, ...], no_gpu_check: bool, **options: Any) -> None:
    """Run the job that CONFIG (a config.py) defines.

    \b
        trainer push config.py --tail

    The job goes on when this command ends. With --tail the exit code is 0 if the job completes, else 10.
    """
    from dataclasses import replace

    from trainer.config import load_config as load_own_config
    from trainer.engine.submit import push as submit
    from trainer.engine.supervising import sweep
    from trainer.jobs.store import Store
    from trainer.loading import load_config, overridden

    own = load_own_config(os.environ)
    loaded = load_config(config)
    loaded = replace(loaded, project=overridden(loaded.project, take_overrides(options)))
    for line in loaded.warnings:
        click.echo(f"trainer: warning: {line}", err=True)
    with Store(own.database) as store:
        sweep(own, store)
        pushed = submit(own, store, loaded, writable=writable, gpu_check=not no_gpu_check)
        _told(own, store, pushed, tail)


@click.command(short_help="Run a job again, with the files it had.")
@click.argument("job_id", required=False)
@click.option("--job-id", "job_option", metavar="JOB", help="The same as the argument.")
@click.option("--tail", is_flag=True, help="Show its log until it has ended.")
def recreate(job_id: str | None, job_option: str | None, tail: bool) -> None:
    """Run a job (the last one, if none is named) again, with the very workspace it had."""
    from trainer.cli.jobs import chosen, opened
    from trainer.engine.submit import recreate as again

    with opened() as (own, store):
        _told(own, store, again(own, store, chosen(store, job_id or job_option)), tail)


def _told(own: Any, store: Any, pushed: Any, tail: bool) -> None:
    from trainer.cli.logs import show_line
    from trainer.engine.following import follow

    job = pushed.job
    click.echo(f"job {job.id} ({job.name}) of project {job.project} ({job.project_id})", err=tail)
    for note in pushed.notes:
        click.echo(f"trainer: note: {note}", err=True)
    if tail:
        follow(own, store, job.id, show_line)
    else:
        click.echo(f"follow it with `trainer logs --tail {job.id}`, end it with `trainer stop {job.id}`")
