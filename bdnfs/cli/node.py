"""node: this machine's part in its cluster."""

import os
import sys

import click

from bdnfs.cli.arguments import config_option, read_config
from bdnfs.core.errors import SpecError


@click.command(short_help="Be a node of a cluster: serve chunks to its other nodes.")
@click.option("--no-nginx", is_flag=True, help="Send chunks without nginx, even where it is installed.")
@config_option
def node(no_nginx: bool, config: str | None) -> None:
    """Join the config's cluster, and serve chunks to its nodes until Ctrl-C or SIGTERM. One on each machine.

    \b
        cluster: {members: "node[01-08]", listen: 0.0.0.0:7891, token_file: /etc/bdnfs/token}
        mirror: s3://bucket/prefix

    mount, prefetch and run ask the cluster's nodes for chunks while it runs.
    """
    loaded = read_config(config)
    try:
        from bdnfs.session.node import serve_node
    except ModuleNotFoundError as error:
        if error.name != "h11":
            raise
        raise SpecError("node needs h11, which is not installed; run: pip install 'bdnfs[cluster]'") from None
    serve_node(loaded, os.environ, _say, _warn, nginx=not no_nginx)


def _say(line: str) -> None:
    print(f"bdnfs: {_shown(line)}", flush=True)


def _warn(line: str) -> None:
    print(f"bdnfs: warning: {_shown(line)}", file=sys.stderr, flush=True)


def _shown(line: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in line)
