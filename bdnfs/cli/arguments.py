"""Options that several commands share, and the way from them to frozen config objects."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from bdnfs.cache.node import NodeCache, open_node_cache
from bdnfs.cli.progress import MODES, Shower
from bdnfs.core.errors import SpecError
from bdnfs.core.units import parse_duration
from bdnfs.session.elsewhere import scanner
from bdnfs.session.options import Options
from bdnfs.session.parts import as_written, read_secrets
from bdnfs.spec.config import Config, load_config
from bdnfs.spec.load import Placed, load_spec, place
from bdnfs.spec.lock import lock_path, read_lock
from bdnfs.spec.secret import Secrets
from bdnfs.spec.weights import Spec

F = TypeVar("F", bound=Callable[..., Any])


class Duration(click.ParamType[float]):
    """A duration such as 30m, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(value)
        except SpecError as error:
            self.fail(str(error), param, ctx)


def config_option(command: F) -> F:
    return click.option("--config", metavar="FILE", help="The node's config, instead of the usual places.")(
        command
    )


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def hf_cache_option(command: F) -> F:
    return click.option(
        "--hf-cache",
        metavar="DIR",
        type=click.Path(),
        callback=lambda _context, _option, value: None if value is None else os.path.abspath(value),
        help="Show the hf:// sources in DIR as a Hugging Face cache has them, for from_pretrained('org/name').",
    )(command)


def resolve_options(command: F) -> F:
    """What every command takes that goes from a spec to snapshots."""
    for option in reversed(
        (
            click.option("--root", metavar="DIR", help="Put every mount_location below DIR."),
            click.option("--locked", is_flag=True, help="Fail if a branch has moved on from spec.lock."),
            click.option("--offline", is_flag=True, help="Ask upstream nothing; use what is here."),
            click.option(
                "--refresh", is_flag=True, help="Ask upstream anew, whatever spec.lock or the cache say."
            ),
            click.option(
                "--timeout", type=Duration(), metavar="DURATION", help="The longest wait, such as 30m."
            ),
            click.option(
                "--progress", type=click.Choice(MODES), help="bar, plain or json lines, on standard error."
            ),
        )
    ):
        command = option(command)
    return config_option(command)


@dataclass(frozen=True)
class Call:
    """One call, its arguments read and checked."""

    spec: Spec
    config: Config
    placed: tuple[Placed, ...]
    options: Options
    secrets: Secrets
    mountpoint: str | None
    shower: Shower


def read_call(
    spec: str,
    mountpoint: str | None,
    *,
    config: str | None,
    root: str | None,
    locked: bool,
    offline: bool,
    refresh: bool,
    timeout: float | None,
    progress: str | None,
    lazy: bool = False,
    fill: bool = True,
    unplaced: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Call:
    """Read spec, lock, config and secrets. unplaced: no mountpoint is needed (`prefetch`, `plan`)."""
    if offline and refresh:
        raise SpecError("--offline and --refresh exclude each other; give one of them")
    if locked and refresh:
        raise SpecError("--locked and --refresh exclude each other; give one of them")
    if not fill and not lazy:
        raise SpecError("--no-fill goes with --lazy: without it nothing would ever be whole")
    loaded = load_config(config, environment)
    found = load_spec(spec, mountpoint, cwd=os.getcwd())
    nowhere = unplaced and mountpoint is None and root is None
    placed = as_written(found) if nowhere else place(found, mountpoint, root, cwd=os.getcwd())
    options = Options(
        lock=None if found.path is None else read_lock(lock_path(found.path)),
        locked=locked,
        offline=offline or loaded.offline,
        refresh=refresh,
        lazy=lazy,
        fill=fill,
        timeout_s=timeout,
    )
    if locked and options.lock is None:
        raise SpecError(f"{found.path or spec}: --locked needs a spec.lock beside the spec; run `bdnfs lock`")
    absolute = os.path.abspath(mountpoint) if mountpoint else None
    secrets, shower = read_secrets(placed, loaded, environment), Shower(progress)
    for line in found.warnings:
        shower.warn(line)
    return Call(found, loaded, placed, options, secrets, absolute, shower)


def node_cache(config: Config) -> "Any":
    """Open the node cache; its evictor finds mounts in every namespace."""
    return open_node_cache(config.cache, scanner(config.cache))


def read_config(config: str | None) -> Config:
    return load_config(config, os.environ)


__all__ = ["Call", "NodeCache", "node_cache", "read_call", "read_config"]
