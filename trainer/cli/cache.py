"""cache summarize."""

import click

from trainer.cli.jobs import opened, size
from trainer.cli.tables import Column, Table, output_option
from trainer.engine.log import stamp

_SORTS = ("filepath", "size", "modified", "type", "permissions")


@click.group(short_help="What projects keep between jobs.")
def cache() -> None:
    """The training cache: what a project's jobs keep for each other, until the project is deleted."""


@cache.command(short_help="List what a project's cache holds.")
@click.argument("project")
@click.option("--sort", type=click.Choice(_SORTS), default="filepath", show_default=True, help="By what.")
@click.option(
    "--order", type=click.Choice(["asc", "desc"]), default="asc", show_default=True, help="Which way."
)
@output_option
def summarize(project: str, sort: str, order: str, output_format: str) -> None:
    """List every file and directory in the training cache of PROJECT (a name or id)."""
    from typing import Literal, cast

    from trainer.storage.training_cache import SortKey, project_cache
    from trainer.storage.training_cache import summarize as summary_of

    with opened() as (own, store):
        found = store.project(project)
        summary = summary_of(
            project_cache(own.home, found.id),
            sort=cast(SortKey, sort),
            order=cast(Literal["asc", "desc"], order),
            cap_bytes=own.cache_bytes,
        )
    columns = (
        Column("filepath", "Path"), Column("size_bytes", "Size", size, right=True),
        Column("modified", "Modified"), Column("type", "Type"), Column("permissions", "Permissions"),
    )  # fmt: skip
    rows = [
        (each.path, each.size_bytes, stamp(each.modified_s), each.file_type, each.permissions)
        for each in summary.entries
    ]
    Table(columns, rows, empty=f"the training cache of project {found.name} is empty").print(output_format)
    if output_format == "cli-table":
        print(
            f"{summary.files} files, {size(summary.size_bytes)} of {size(summary.cap_bytes)}; in {summary.directory}"
        )
