"""The `bdnfs` command group. Commands are imported when they are called: a hit loads only its own."""

import importlib
from typing import Any

import click

# name: (module, one line for the list of commands)
COMMANDS = {
    "mount": ("mount", "Mount what a spec declares; return when all of it is whole."),
    "unmount": ("mount", "Unmount what is at, or below, a directory."),
    "wait": ("mount", "Wait until everything mounted at a directory is whole."),
    "status": ("mount", "Say what is mounted, and how far it is."),
    "run": ("run", "Fill, bind in a namespace of its own, run a command."),
    "prefetch": ("run", "Bring everything a spec declares into the node cache."),
    "stage": ("run", "Put a snapshot into a plain directory, without mounting."),
    "plan": ("plan", "Say what would be fetched, and how long it should take."),
    "lock": ("plan", "Write spec.lock: the revision of each source now."),
    "mirror": ("mirror", "Bring a spec's sources into the mirror; look after it."),
    "serve-volumes": ("serve", "Serve the mirror's volumes over HTTP, as BDN's own client reads them."),
    "node": ("node", "Be a node of a cluster: serve chunks to its other nodes."),
    "purge": ("purge", "Delete everything of a tenant."),
    "pin": ("cache", "Keep a spec's snapshots from being evicted for a while."),
    "cache": ("cache", "Look after the node cache."),
    "secret": ("secret", "Set, list and remove secrets; a value comes on standard input."),
    "doctor": ("doctor", "Say what this machine can do, and what to install."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"bdnfs.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        import difflib

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"there is no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bdnfs")
def bdnfs() -> None:
    """Model weights and datasets, mounted whole, verified, read-only, at the speed of the local disk."""
