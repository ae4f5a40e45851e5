"""checkpoints list, checkpoints download."""

import click

from trainer.cli.jobs import chosen, opened, size
from trainer.cli.tables import Column, Table, output_option
from trainer.engine import checkpointing
from trainer.engine.log import stamp


@click.group(short_help="What jobs have saved.")
def checkpoints() -> None:
    """What jobs have written to BT_CHECKPOINT_DIR, and what of it is in object storage."""


@checkpoints.command("list", short_help="List a job's checkpoints.")
@click.argument("job_id", required=False)
@click.option("--job-id", "job_option", metavar="JOB", help="The same as the argument.")
@output_option
def list_(job_id: str | None, job_option: str | None, output_format: str) -> None:
    """List the checkpoints of a job (the last one, if none is named), oldest first."""
    from trainer.storage.checkpoints import list_checkpoints

    with opened() as (own, store):
        job = chosen(store, job_id or job_option)
        found = list_checkpoints(checkpointing.open_store(own), job.id, checkpointing.record(own, job.id))
    columns = (
        Column("job_id", "Job"), Column("checkpoint", "Checkpoint"), Column("rank", "Rank", right=True),
        Column("files", "Files", right=True), Column("size_bytes", "Size", size, right=True),
        Column("modified", "Modified"), Column("state", "Sync"),
    )  # fmt: skip
    rows = [
        (each.job_id, each.name, each.rank, each.files, each.size_bytes, stamp(each.modified_s), each.state)
        for each in found
    ]
    empty = f"job {job.id} has saved no checkpoint"
    if job.sync == "":
        empty += "; its config has no CheckpointingConfig(enabled=True), or it has not run yet"
    Table(columns, rows, empty=empty).print(output_format)


@checkpoints.command(short_help="Get a job's checkpoints.")
@click.argument("job_id", required=False)
@click.option("--job-id", "job_option", metavar="JOB", help="The same as the argument.")
@click.option(
    "--name", "names", multiple=True, metavar="NAME", help="Only this one; may be given several times."
)
@click.option("--target-directory", metavar="DIR", default=".", help="Where to write; here if not given.")
def download(
    job_id: str | None, job_option: str | None, names: tuple[str, ...], target_directory: str
) -> None:
    """Write checkpoints of a job (the last one, if none is named) to DIR/<job>/rank-N/, each file verified."""
    from pathlib import Path

    from trainer.storage.checkpoints import download_checkpoints

    with opened() as (own, store):
        job = chosen(store, job_id or job_option)
        target = Path(target_directory).absolute() / job.id
        files = download_checkpoints(checkpointing.open_store(own), job.id, target, names or None)
    print(f"{len(files)} files of job {job.id} are in {target}")
