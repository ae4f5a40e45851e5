"""pin and the cache group: ls, du, verify, evict, import."""

import os
import time
from pathlib import Path
from typing import Any

import click

from bdnfs.cache.node import NodeCache
from bdnfs.cli.arguments import (
    Call,
    Duration,
    config_option,
    json_option,
    node_cache,
    read_call,
    read_config,
    resolve_options,
)
from bdnfs.cli.progress import MODES, Shower
from bdnfs.core.errors import IntegrityError, SpecError
from bdnfs.core.units import format_duration, format_size, short


@click.command(short_help="Keep a spec's snapshots from being evicted for a while.")
@click.argument("spec")
@click.option("--until", type=Duration(), metavar="DURATION", help="How long from now, such as 7d.")
@click.option("--off", is_flag=True, help="Let them be evicted again.")
@resolve_options
def pin(spec: str, until: float | None, off: bool, **options: Any) -> None:
    """Keep what SPEC declares from being evicted; what is not whole is fetched first."""
    from bdnfs.cli.run import _whole

    if (until is None) == (not off):
        raise SpecError("say how long with --until 7d, or --off to end a pin")
    call = read_call(spec, None, unplaced=True, **options)
    with node_cache(call.config) as cache:
        if off:
            _unpin(cache, call)
            return
        for part in _whole(cache, call):
            cache.pin_until(part.snapshot_id, time.time() + (until or 0))
            print(f"{part.weights.source.key}@{part.revision}: pinned")
            part.close()


def _unpin(cache: NodeCache, call: Call) -> None:
    """End the pins of every revision of the sources that is here; nothing is asked of upstream."""
    for key in {item.weights.source.key for item in call.placed}:
        for item in cache.holdings():
            if item.row.source == key and item.row.pinned_until_s:
                cache.pin_until(item.snapshot_id, 0.0)
                print(f"{key}@{item.row.revision}: no longer pinned")


@click.group(short_help="Look after the node cache.")
def cache() -> None:
    """Look after the node cache."""


@cache.command()
@json_option
@config_option
def ls(as_json: bool, config: str | None) -> None:
    """List the snapshots, least recently used first."""
    import json

    with node_cache(read_config(config)) as cache:
        holdings = cache.holdings()
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "snapshot_id": item.snapshot_id,
                        "source": item.row.source,
                        "revision": item.row.revision,
                        "files": item.row.files,
                        "bytes": item.row.size,
                        "whole": item.row.whole,
                        "used_s": item.row.used_s,
                        "created_s": item.row.created_s,
                        "pinned": item.pinned,
                        "tenant": item.row.tenant,
                    }
                    for item in holdings
                ]
            )
        )
        return
    for item in holdings:
        age = format_duration(max(0.0, time.time() - item.row.used_s))
        print(
            f"{item.row.source}@{short(item.row.revision)}  {item.row.files} files  {format_size(item.row.size)}  "
            f"{'whole' if item.row.whole else 'partial'}  used {age} ago{f'  {item.pinned}' if item.pinned else ''}"
        )
    if not holdings:
        print("the cache is empty")


@cache.command()
@json_option
@config_option
def du(as_json: bool, config: str | None) -> None:
    """Say what the cache holds and may hold."""
    import json

    loaded = read_config(config)
    with node_cache(loaded) as cache:
        usage = cache.usage()
    if as_json:
        print(json.dumps({"directory": loaded.cache.directory, **vars(usage)}))
        return
    capacity = "no limit" if usage.capacity_bytes is None else format_size(usage.capacity_bytes)
    print(f"{loaded.cache.directory}: {format_size(usage.present_bytes)} present, capacity {capacity}")
    print(
        f"disk: {format_size(usage.disk_free_bytes)} free, {format_size(usage.reserve_bytes)} of it reserved"
    )


@cache.command()
@config_option
def verify(config: str | None) -> None:
    """Rehash every blob; forget what is not what was written (the next mount fetches it again)."""
    bad = 0
    with node_cache(read_config(config)) as cache:
        blobs = cache.blobs()
        for blob, row in blobs:
            problem = cache.verify_blob(blob)
            if problem is not None and cache.blob_row(blob) is not None:  # else it was evicted meanwhile
                bad += 1
                print(f"{blob.hex()[:16]}… ({format_size(row.size)}): {problem}")
    print(f"{len(blobs)} blobs rehashed, {bad} bad")
    if bad:
        raise IntegrityError(
            f"{bad} of {len(blobs)} blobs were damaged and dropped; mount again to fetch them anew"
        )


@cache.command()
@click.option(
    "--older-than",
    type=Duration(),
    metavar="DURATION",
    default=0.0,
    help="Only what was not used for so long.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@config_option
def evict(older_than: float, dry_run: bool, config: str | None) -> None:
    """Evict what is not pinned, mounted or in use."""
    with node_cache(read_config(config)) as cache:
        eviction = cache.evict(unused_since_s=time.time() - older_than, dry_run=dry_run)
    for row in eviction.snapshots:
        print(f"{row.source}@{short(row.revision)}")
    print(f"{format_size(eviction.freed_bytes)} {'would be ' if dry_run else ''}freed")


@cache.command("import")
@click.argument("directory", required=False)
@click.option("--dry-run", is_flag=True, help="Only say what would be taken in, and how.")
@click.option("--progress", type=click.Choice(MODES), help="bar, plain or json lines, on standard error.")
@json_option
@config_option
def import_(
    directory: str | None, dry_run: bool, progress: str | None, as_json: bool, config: str | None
) -> None:
    """Take in what a Hugging Face cache DIRECTORY holds: verified, by reflink or hardlink where that can be.

    Without DIRECTORY it is $HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub.
    """
    from bdnfs.cli.imported import (
        hub_cache_directory,
        import_error,
        import_json,
        import_lines,
        printable,
    )
    from bdnfs.session.hub_cache import scan
    from bdnfs.session.importing import Importer

    loaded = read_config(config)
    place = Path(os.path.abspath(directory or hub_cache_directory(os.environ)))
    shower = Shower(progress, doing="import")
    left_out: list[tuple[Path, str]] = []
    downloads = scan(place, lambda path, why: left_out.append((path, why)))
    for path, why in left_out:
        shower.warn(printable(f"{path}: {why}; left out"))
    with node_cache(loaded) as cache:
        importer = Importer(cache, downloads, shower.show, loaded.tenant or "")
        try:
            done = importer.look() if dry_run else importer.run()
        finally:
            shower.close()
    if as_json:
        print(import_json(place, done, left_out, dry_run=dry_run))
    else:
        for line in import_lines(done, dry_run=dry_run):
            print(line)
    error = import_error(place, done)
    if error is not None:
        raise error
