"""The secret group: set, ls, rm. No command shows a value."""

import os
import sys
import time

import click

from bdnfs.cli.arguments import config_option, json_option, read_config
from bdnfs.core.units import format_duration
from bdnfs.spec.secret import SECRET_BYTES_MAX


@click.group(short_help="Set, list and remove secrets.")
def secret() -> None:
    """Set, list and remove the secrets that auth_secret_name names."""


@secret.command(name="set")
@click.argument("name")
@click.argument("rest", nargs=-1, metavar="< VALUE")
@config_option
def set_(name: str, rest: tuple[str, ...], config: str | None) -> None:
    """Read the value of NAME from standard input (on a terminal it is asked for, unseen) and keep it.

    \b
        bdnfs secret set hf_access_token < token.txt
    """
    from bdnfs.spec.auth import check_secret_name
    from bdnfs.spec.secret_files import write_secret

    if rest:
        raise click.UsageError("the value comes on standard input: as an argument everybody could see it")
    check_secret_name(name)
    if sys.stdin.isatty():
        content = click.prompt(f"Value of {name}", hide_input=True, err=True).encode()
    else:
        content = sys.stdin.buffer.read(SECRET_BYTES_MAX + 3)
    print(f"written to {write_secret(read_config(config).secrets, name, content)}")


@secret.command()
@json_option
@config_option
def ls(as_json: bool, config: str | None) -> None:
    """List the secrets by name, with their age and where they are; never their values."""
    import json

    from bdnfs.spec.secret_files import known_secrets

    loaded = read_config(config).secrets
    found = known_secrets(loaded, os.environ)
    now_s = time.time()
    ages = [None if item.written_s is None else max(0.0, now_s - item.written_s) for item in found]
    if as_json:
        items = [
            {"name": item.name, "from": item.place, "age_s": age_s}
            for item, age_s in zip(found, ages, strict=True)
        ]
        print(json.dumps({"directory": loaded.directory, "secrets": items}))
        return
    for item, age_s in zip(found, ages, strict=True):
        print(
            f"{item.name}  {'' if age_s is None else f'written {format_duration(age_s)} ago  '}{item.place}"
        )
    if not found:
        print(f"there are no secrets in {loaded.directory}; `bdnfs secret set NAME` writes one")


@secret.command()
@click.argument("name")
@config_option
def rm(name: str, config: str | None) -> None:
    """Remove the file of NAME."""
    from bdnfs.spec.secret_files import remove_secret

    print(f"removed {remove_secret(read_config(config).secrets, name)}")
