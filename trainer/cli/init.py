"""init."""

import click

from trainer.cli.tables import Column, Table, output_option


@click.command(short_help="Write an example, ready to run.")
@click.option("--list-examples", is_flag=True, help="Say which examples there are; write nothing.")
@click.option(
    "--target-directory",
    metavar="DIR",
    help="Where to write; a directory named like the example if not given.",
)
@click.option(
    "--examples",
    metavar="NAME[,NAME…]",
    help="Which examples; several are written into directories of their own.",
)
@output_option
def init(list_examples: bool, target_directory: str | None, examples: str | None, output_format: str) -> None:
    """Write examples: a config.py, a training script, and what else they need.

    \b
        trainer init --examples qwen3-0.6b-bdn-weights
        trainer push qwen3-0.6b-bdn-weights/config.py --tail
    """
    from trainer.examples.catalog import catalog, write_example

    if list_examples:
        columns = (Column("name", "Example"), Column("about", "What it shows"))
        Table(columns, [(each.name, each.about) for each in catalog()]).print(output_format)
        return
    if not examples:
        raise click.UsageError("name an example with --examples NAME; --list-examples says which there are")
    for name in filter(None, (each.strip() for each in examples.split(","))):
        written = write_example(name, target_directory, several="," in examples)
        print(f"{name} is in {written}; run it with `trainer push {written}/config.py --tail`")
