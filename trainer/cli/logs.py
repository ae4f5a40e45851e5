"""logs."""

import click


def show_line(line: str) -> None:
    # What a job prints is for this terminal's eyes, not its hands; tabs and colours are harmless.
    print("".join(char if char.isprintable() or char in "\t\x1b\r" else "?" for char in line), flush=True)


@click.command(short_help="Show what a job prints.")
@click.argument("job_id", required=False)
@click.option("--job-id", "job_option", metavar="JOB", help="The same as the argument.")
@click.option("--tail", is_flag=True, help="Go on until it has ended.")
def logs(job_id: str | None, job_option: str | None, tail: bool) -> None:
    """Show the log of a job (the last one, if none is named), each line with its time (UTC)."""
    from trainer.cli.jobs import chosen, opened
    from trainer.engine.directory import JobDirectory
    from trainer.engine.following import follow
    from trainer.engine.log import read_log

    with opened() as (own, store):
        job = chosen(store, job_id or job_option)
        if tail:
            follow(own, store, job.id, show_line)
            return
        for line in read_log(JobDirectory(own.job_directory(job.id)).log):
            show_line(line)
