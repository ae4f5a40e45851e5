"""serve-volumes: the mirror's volumes over HTTP, for BDN's own client and whatever reads as it does."""

import os
import sys
import time

import click
import msgspec

from bdnfs.cli.arguments import config_option, read_config
from bdnfs.core.errors import SpecError
from bdnfs.spec.fields import Position
from bdnfs.spec.serve import parse_listen


@click.command(short_help="Serve the mirror's volumes over HTTP.")
@click.option("--listen", metavar="HOST:PORT", help="Where to listen, instead of where the config says.")
@click.option("--quiet", is_flag=True, help="Say nothing of single requests.")
@config_option
def serve_volumes(listen: str | None, quiet: bool, config: str | None) -> None:
    """Answer BDN's read API from the mirror, until Ctrl-C or SIGTERM.

    \b
        VolumeClient(api_key=…, base_url_override="http://127.0.0.1:7890",
                     bdn_endpoint_override="http://127.0.0.1:7890")

    It hands out short-lived credentials of its own, never the mirror's keys, and writes nothing.
    """
    loaded = read_config(config)
    if listen is not None:
        host, port = parse_listen(listen, Position("--listen"))
        loaded = msgspec.structs.replace(
            loaded, serve=msgspec.structs.replace(loaded.serve, host=host, port=port)
        )
    try:
        from bdnfs.session.serving import serve_mirror
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "hypercorn"):
            raise
        raise SpecError(
            f"serve-volumes needs {error.name}, which is not installed; run: pip install 'bdnfs[serve]'"
        ) from None
    serve_mirror(loaded, os.environ, _say, _nothing if quiet else _told, _warn)


def _say(line: str) -> None:
    print(f"bdnfs: {line}", flush=True)


def _told(line: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}", file=sys.stderr)


def _warn(line: str) -> None:
    print(f"bdnfs: warning: {line}", file=sys.stderr)


def _nothing(line: str) -> None:
    pass
