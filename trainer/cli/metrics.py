"""metrics."""

import click

from trainer.cli.jobs import chosen, opened, size
from trainer.cli.tables import Cell, Column, Table, output_option


@click.command(short_help="Say what a running job uses now.")
@click.argument("job_id", required=False)
@click.option("--job-id", "job_option", metavar="JOB", help="The same as the argument.")
@output_option
def metrics(job_id: str | None, job_option: str | None, output_format: str) -> None:
    """Say what a running job (the last one, if none is named) uses now: processors, memory, scratch, GPUs."""
    from trainer.engine.directory import JobDirectory
    from trainer.engine.usage import usage

    with opened() as (own, store):
        job = chosen(store, job_id or job_option)
        found = usage(job, JobDirectory(own.job_directory(job.id)))
    rows: list[tuple[Cell, ...]] = [
        ("processes", found.processes, ""),
        ("cpu_cores", found.cpu_cores, ""),
        ("memory_bytes", found.memory_bytes, size(found.memory_bytes)),
        ("scratch_used_bytes", found.scratch_used_bytes, size(found.scratch_used_bytes)),
    ]
    for gpu in found.gpus:
        rows.append((f"gpu_{gpu.index}_busy_percent", gpu.busy_percent, f"{gpu.busy_percent} %"))
        rows.append(
            (f"gpu_{gpu.index}_memory_mib", gpu.memory_mib, f"{gpu.memory_mib} of {gpu.memory_total_mib} MiB")
        )
    columns = (Column("metric", "Metric"), Column("value", "Value", right=True), Column("shown", ""))
    Table(columns, rows).print(output_format)
