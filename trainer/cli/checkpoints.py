"""checkpoints list, checkpoints download, checkpoints upload."""

import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from trainer.cli.jobs import chosen, opened, size
from trainer.cli.tables import Cell, Column, Table, output_option
from trainer.engine import checkpointing
from trainer.engine.log import stamp

if TYPE_CHECKING:
    from trainer.storage.checkpoint_sync import SyncProgress

_LINE_EVERY_S = 10.0


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


@checkpoints.command(short_help="Bring up what a job that has ended left behind.")
@click.argument("job_id", required=False)
@click.option("--job-id", "job_option", metavar="JOB", help="The same as the argument.")
@output_option
def upload(job_id: str | None, job_option: str | None, output_format: str) -> None:
    """Bring those checkpoints into object storage that a job (the last one, if none is named) could not.

    They were kept on this machine, and are cleared away once all of them are up. Only what is missing is uploaded:
    interrupted, the same command goes on.
    """
    from trainer.engine.directory import JobDirectory
    from trainer.engine.uploading import upload_checkpoints
    from trainer.storage.errors import StoreError

    shown = _Progress()
    with opened() as (own, store):
        job = chosen(store, job_id or job_option)
        try:
            report = upload_checkpoints(own, store, job, watch=shown.show, say=shown.say)
        finally:
            shown.clear()
        sync = store.job(job.id).sync
        if output_format != "cli-table":
            columns = [
                Column(name, name)
                for name in ("job_id", "state", "files", "size_bytes", "uploaded_bytes", "missing")
            ]
            row: tuple[Cell, ...] = (job.id, sync or None, None, None, None, None)
            if report is not None:
                numbers = (report.files, report.size_bytes, report.uploaded_bytes, len(report.missing))
                row = (job.id, report.state, *numbers)
            Table(columns, [row]).print(output_format)
        elif report is None:
            why = "all of them are up" if sync else "it has saved none"
            print(f"nothing to upload: job {job.id} has left no checkpoint here, {why}")
        elif report.state == "COMPLETED":
            print(f"job {job.id}: {report.said}; {size(report.uploaded_bytes)} went up now")
        if report is not None and report.state != "COMPLETED":
            directory = JobDirectory(own.job_directory(job.id))
            raise StoreError(f"job {job.id}: {checkpointing.said_of_missing(job.id, directory, report)}")


class _Progress:
    """How far an upload is, on standard error: one line that changes on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._width, self._said, self._next_s = 0, "", 0.0

    def show(self, progress: "SyncProgress") -> None:
        if not progress.counted:
            return
        done, of = size(progress.up_bytes), size(progress.size_bytes)
        line = f"{progress.files_up} of {progress.files} files, {done} of {of}"
        if progress.uploading:
            line += f"; on the way: {progress.uploading[0]}"
            line += f" and {len(progress.uploading) - 1} more" if len(progress.uploading) > 1 else ""
        line = "".join(char if char.isprintable() else "?" for char in line)
        if self._terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            click.echo(f"\r{line.ljust(self._width)}", nl=False, err=True)
            self._width = len(line)
        elif line != self._said and time.monotonic() >= self._next_s:
            click.echo(line, err=True)
            self._said, self._next_s = line, time.monotonic() + _LINE_EVERY_S

    def say(self, line: str) -> None:
        self.clear()
        click.echo(f"trainer: {line}", err=True)

    def clear(self) -> None:
        """Leave the terminal's line empty, for whoever writes next."""
        if self._width:
            click.echo(f"\r{' ' * self._width}\r", nl=False, err=True)
            self._width = 0
