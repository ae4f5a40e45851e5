"""The `trainer` command group. A command's module is imported when it is called."""

import importlib
from collections.abc import Mapping
from typing import Any

import click

# name: (module below trainer.cli, one line for the list of commands). The command is the function of that name,
# `-` written `_`; a group of commands is one as well.
COMMANDS = {
    "init": ("init", "Write an example, ready to run."),
    "check": ("check", "Validate a config and print the resolved job; submit nothing."),
    "push": ("push", "Run the job that a config defines."),
    "view": ("jobs", "List jobs, or show one."),
    "logs": ("logs", "Show what a job prints."),
    "metrics": ("metrics", "Say what a running job uses now."),
    "stop": ("jobs", "End a job."),
    "recreate": ("push", "Run a job again, with the files it had."),
    "update": ("jobs", "Change what a waiting job waits by."),
    "download": ("jobs", "Get the files a job started with."),
    "checkpoints": ("checkpoints", "What jobs have saved."),
    "cache": ("cache", "What projects keep between jobs."),
    "project": ("project", "What jobs are gathered in."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"trainer.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(unknown(args[0], COMMANDS))
        return super().resolve_command(ctx, args)


def unknown(word: str, commands: Mapping[str, object]) -> str:
    """Return what to say about a command that is not there, with the nearest one that is."""
    from trainer.definitions.base import hint

    return f"there is no command {word!r}; {hint(word, commands)}"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bdnfs")
def trainer() -> None:
    """Training jobs: a config.py written for truss_train runs unchanged, its weights delivered first."""
