"""project delete."""

import click

from trainer.cli.jobs import opened, size


@click.group(short_help="What jobs are gathered in.")
def project() -> None:
    """Projects: they are made by the first push that names them."""


@project.command(short_help="Delete a project, its jobs and its training cache.")
@click.argument("named", metavar="PROJECT")
@click.option("--checkpoints", is_flag=True, help="Delete its checkpoints from object storage, too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(named: str, checkpoints: bool, yes: bool) -> None:
    """Delete PROJECT (a name or id): its jobs, their logs, its training cache. The team's cache stays."""
    from trainer.engine.deleting import delete_project

    with opened() as (own, store):
        found = store.project(named)
        jobs = store.jobs(project_id=found.id)
        if not yes:
            click.confirm(
                f"delete project {found.name} ({found.id}) with {len(jobs)} jobs and its cache?", abort=True
            )
        freed_bytes = delete_project(own, store, found, checkpoints=checkpoints)
    kept = "" if checkpoints else "; checkpoints in object storage stay"
    print(f"project {found.name} is deleted, {size(freed_bytes)} of training cache freed{kept}")
