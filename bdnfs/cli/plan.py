"""plan, lock."""

import os
from contextlib import nullcontext
from typing import Any

import click

from bdnfs.cli.arguments import json_option, node_cache, read_call, resolve_options
from bdnfs.core.errors import SpecError


@click.command(short_help="Say what would be fetched, and how long it should take.")
@click.argument("spec")
@click.argument("mountpoint", required=False)
@json_option
@resolve_options
def plan(spec: str, mountpoint: str | None, as_json: bool, **options: Any) -> None:
    """Say per source and tier what a mount of SPEC would fetch. Writes nothing.

    The time is judged from one chunk over one connection, so it is the slow end.
    """
    import json

    import msgspec

    from bdnfs.core.units import format_duration, format_size
    from bdnfs.session.planning import plan as make_plan

    call = read_call(spec, mountpoint, unplaced=True, **options)
    known = os.path.exists(os.path.join(call.config.cache.directory, "index.lmdb"))
    with node_cache(call.config) if known else nullcontext() as cache:
        planned = make_plan(cache, call.config, call.placed, call.options, call.secrets, call.shower.warn)
    if as_json:
        print(json.dumps({"sources": msgspec.to_builtins(planned)}))
        return
    for item in planned:
        print(f"{item.source} at {item.revision}: {item.files} files, {format_size(item.total_bytes)}")
        print(f"    on this node: {format_size(item.present_bytes)}")
        for tier, size in item.tier_bytes.items():
            took = "" if item.seconds is None else f", about {format_duration(item.seconds)}"
            print(f"    from {tier}: {format_size(size)}{took}")


@click.command(short_help="Write spec.lock: the revision of each source now.")
@click.argument("spec")
@resolve_options
def lock(spec: str, **options: Any) -> None:
    """Resolve every source of SPEC (a file) and write the revisions to spec.lock beside it."""
    from bdnfs.session.asking import resolve_revisions
    from bdnfs.spec.lock import lock_path, locked, write_lock

    call = read_call(spec, None, unplaced=True, **options)
    if call.spec.path is None:
        raise SpecError(f"{spec}: only a spec file can be locked; a single source takes @revision")
    if call.options.offline:
        raise SpecError("lock asks upstream what each source is now; leave --offline away")
    found = resolve_revisions(call.config, call.placed, call.options, call.secrets, call.shower.warn)
    path = lock_path(call.spec.path)
    write_lock(path, [locked(weights, revision) for weights, revision in found])
    for weights, revision in found:
        print(f"{weights.source.text} is at {revision}")
    print(f"written to {path}")
