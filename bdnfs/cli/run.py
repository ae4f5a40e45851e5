"""run, prefetch, stage."""

import sys
from typing import Any

import click

from bdnfs.cli.arguments import Call, hf_cache_option, node_cache, read_call, resolve_options


class _RunCommand(click.Command):
    """Splits at `--`: what follows is the command, untouched."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["command"] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)


@click.command(cls=_RunCommand, short_help="Fill, bind in a namespace of its own, run a command.")
@click.argument("spec")
@click.argument("mountpoint", required=False)
@hf_cache_option
@resolve_options
@click.pass_context
def run(
    ctx: click.Context, /, spec: str, mountpoint: str | None, hf_cache: str | None, **options: Any
) -> int:
    """Run a command with everything SPEC declares whole and bound, only for it.

    \b
        bdnfs run spec.yaml -- python train.py

    Its exit code is the command's. Nothing is left behind. With --hf-cache it gets HF_HUB_CACHE, and
    HF_HUB_OFFLINE=1 unless that is set already.
    """
    from bdnfs.session.running import run_command

    command = ctx.meta.get("command") or []
    if not command:
        raise click.UsageError(
            "no command: write it after --, as in `bdnfs run spec.yaml -- python train.py`"
        )
    call = read_call(spec, mountpoint, **options)
    with node_cache(call.config) as cache:
        parts = _whole(cache, call)
        try:
            return run_command(cache.layout, parts, command, hf_cache)
        finally:
            for part in parts:
                part.close()


@click.command(short_help="Bring everything a spec declares into the node cache.")
@click.argument("spec")
@resolve_options
def prefetch(spec: str, **options: Any) -> None:
    """Bring everything SPEC declares into the node cache, verified, and mount nothing."""
    call = read_call(spec, None, unplaced=True, **options)
    with node_cache(call.config) as cache:
        for part in _whole(cache, call):
            print(f"{part.weights.source.key}@{part.revision} is whole")
            part.close()


@click.command(short_help="Put a snapshot into a plain directory, without mounting.")
@click.argument("spec")
@click.argument("mountpoint", required=False)
@resolve_options
def stage(spec: str, mountpoint: str | None, **options: Any) -> None:
    """Put what SPEC declares into plain directories, where nothing may be mounted.

    By reflink copies where the filesystem can; else by symlinks into the cache, which root can write
    through.
    """
    import time

    from bdnfs.fs.stage import stage as stage_tree
    from bdnfs.session.places import check_places

    call = read_call(spec, mountpoint, **options)
    with node_cache(call.config) as cache:
        check_places(cache.layout, [placed.location for placed in call.placed])
        for part in _whole(cache, call):
            how = stage_tree(str(part.tree), part.placed.location)
            if how == "symlink" and part.snapshot_id is not None:
                # Nothing else shows that these links are in use.
                cache.pin_until(part.snapshot_id, time.time() + STAGED_PIN_S)
                print(
                    f"bdnfs: warning: {part.placed.location} holds symlinks into the cache (this filesystem has no "
                    "reflinks): root can write through them; the snapshot is pinned for 7 days (`bdnfs pin`)",
                    file=sys.stderr,
                )
            print(f"{part.placed.location}: {part.weights.source.key}@{part.revision}")
            part.close()


STAGED_PIN_S = 7 * 86400.0


def _whole(cache: Any, call: Call) -> Any:
    """Make every part whole, in this process; the parts come with their pins."""
    from bdnfs.session.parts import close, look

    parts = look(cache, call.config, call.placed, call.options, call.secrets, call.shower.warn)
    if all(part.tree is not None for part in parts):
        return parts
    from bdnfs.session.filling import fill

    try:
        return fill(cache, call.config, parts, call.options, call.secrets, call.shower.show)
    except BaseException:
        close(parts)
        raise
    finally:
        call.shower.close()
