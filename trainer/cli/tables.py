"""One table, three ways to print it: for people, as CSV, as JSON."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("cli-table", "csv", "json")
Cell = str | int | float | bool | None


def output_option(command: F) -> F:
    """Add `-o`; the command gets it as `output_format`."""
    return click.option(
        "-o",
        "--output-format",
        type=click.Choice(FORMATS),
        default=FORMATS[0],
        show_default=True,
        help="How the table is printed.",
    )(command)


@dataclass(frozen=True)
class Column:
    """name: the key in CSV and JSON; title: what people read; shown: a value as people read it."""

    name: str
    title: str
    shown: Callable[[Any], str] = field(default=lambda value: "" if value is None else str(value))
    right: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under columns. empty: what people read where there is no row."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    empty: str = "nothing there"

    def print(self, output_format: str) -> None:
        """Print to standard output. CSV has a line of names; JSON is a list of objects."""
        if output_format == "json":
            names = [column.name for column in self.columns]
            print(json.dumps([dict(zip(names, row, strict=True)) for row in self.rows], indent=2))
        elif output_format == "csv":
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow([column.name for column in self.columns])
            writer.writerows(["" if cell is None else cell for cell in row] for row in self.rows)
        else:
            self._print_for_people()

    def _print_for_people(self) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        if not self.rows:
            print(self.empty)
            return
        shown = RichTable(title=self.title or None, title_justify="left", box=None, pad_edge=False)
        for column in self.columns:
            shown.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
        for row in self.rows:
            cells = [column.shown(cell) for column, cell in zip(self.columns, row, strict=True)]
            # As texts: nothing in a name is markup, and none may move the cursor.
            shown.add_row(
                *(Text("".join(char if char.isprintable() else "?" for char in cell)) for cell in cells)
            )
        # Into a pipe or a file a line is as long as it needs to be.
        console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
        with console.capture() as captured:
            console.print(shown)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
