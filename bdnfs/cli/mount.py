"""mount, unmount, wait, status."""

import os
import sys
from typing import Any

import click

from bdnfs.cli.arguments import (
    Duration,
    config_option,
    hf_cache_option,
    json_option,
    node_cache,
    read_call,
    read_config,
    resolve_options,
)
from bdnfs.cli.progress import MODES, Shower


@click.command(short_help="Mount what a spec declares.")
@click.argument("spec")
@click.argument("mountpoint", required=False)
@click.option("--lazy", is_flag=True, help="Return at once; fill behind the readers (see `bdnfs wait`).")
@click.option(
    "--no-fill", is_flag=True, help="With --lazy: fetch only what is read, keep within the capacity."
)
@hf_cache_option
@resolve_options
def mount(
    spec: str, mountpoint: str | None, lazy: bool, no_fill: bool, hf_cache: str | None, **options: Any
) -> None:
    """Mount what SPEC (a spec.yaml, or one source such as hf://org/repo) declares.

    Readable at once; returns when everything is whole and native. MOUNTPOINT is where relative
    mount_locations go, or the one source.
    """
    from bdnfs.session.mounting import mount_and_view
    from bdnfs.session.parts import close, look
    from bdnfs.session.records import prepared_layout
    from bdnfs.session.unmounting import clear_dead

    call = read_call(spec, mountpoint, lazy=lazy, fill=not no_fill, **options)
    for item in call.placed:
        if item.outside:
            print(
                f"bdnfs: {item.weights.source.text} is mounted at {item.location}, outside MOUNTPOINT",
                file=sys.stderr,
            )
    clear_dead(prepared_layout(call.config.cache))  # a stopped daemon may hold the index's lock
    try:
        with node_cache(call.config) as cache:
            parts = look(cache, call.config, call.placed, call.options, call.secrets, call.shower.warn)
            try:
                result = mount_and_view(
                    cache,
                    call.config,
                    parts,
                    call.options,
                    call.secrets,
                    call.mountpoint,
                    hf_cache,
                    call.shower.show,
                )
            finally:
                close(parts)
    finally:
        call.shower.close()
    for location in result.fuse:
        if no_fill:
            print(f"{location} is readable; what is read is fetched, and kept within the capacity")
        else:
            print(f"{location} is readable; it fills in the background (`bdnfs wait {location}`)")


@click.command(short_help="Unmount what is at, or below, a directory.")
@click.argument("location")
@click.option(
    "--force", is_flag=True, help="Also while it is in use; what is open of a finished mount lives on."
)
@config_option
def unmount(location: str, force: bool, config: str | None) -> None:
    """Unmount everything of bdnfs at or below LOCATION."""
    from bdnfs.session.records import prepared_layout
    from bdnfs.session.unmounting import unmount_at

    unmount_at(prepared_layout(read_config(config).cache), location, force=force)


@click.command(short_help="Wait until everything mounted at a directory is whole.")
@click.argument("locations", nargs=-1, required=True)
@click.option("--timeout", type=Duration(), metavar="DURATION", help="The longest wait, such as 30m.")
@click.option("--progress", type=click.Choice(MODES), help="bar, plain or json lines, on standard error.")
@config_option
def wait(locations: tuple[str, ...], timeout: float | None, progress: str | None, config: str | None) -> None:
    """Return once everything at or below LOCATIONS is whole on local disk."""
    from bdnfs.session.daemons import wait_for
    from bdnfs.session.records import prepared_layout

    shower = Shower(progress)
    try:
        wait_for(prepared_layout(read_config(config).cache), locations, timeout, shower.show)
    finally:
        shower.close()


@click.command(short_help="Say what is mounted, and how far it is.")
@json_option
@config_option
def status(as_json: bool, config: str | None) -> None:
    """Say what is mounted, by whom it is served and where its log is; clear what dead daemons left."""
    import json

    import msgspec

    from bdnfs.cli.shown import cluster_lines, status_lines
    from bdnfs.session.records import prepared_layout
    from bdnfs.session.status import statuses
    from bdnfs.session.unmounting import clear_dead

    loaded = read_config(config)
    cluster, in_cluster = list[str](), {}
    if loaded.cluster is not None:
        from bdnfs.session.cluster_status import cluster_status

        members = cluster_status(loaded.cluster)
        cluster, in_cluster = list(cluster_lines(members)), {"cluster": msgspec.to_builtins(members)}
    if not os.path.isdir(loaded.cache.directory):
        told = {"mounts": [], "cleared": [], "cache": None, **in_cluster}
        print(json.dumps(told) if as_json else "\n".join(["nothing is mounted", *cluster]))
        return
    layout = prepared_layout(loaded.cache)
    cleared = clear_dead(layout)  # before the index is opened: a stopped daemon may hold its lock
    found = statuses(layout)
    with node_cache(loaded) as cache:
        usage = cache.usage()
    if as_json:
        print(
            json.dumps(
                {
                    "mounts": msgspec.to_builtins(found),
                    "cleared": cleared,
                    "cache": {"directory": loaded.cache.directory, **vars(usage)},
                    **in_cluster,
                }
            )
        )
        return
    for location in cleared:
        print(f"{location}: its daemon had died; the mount was cleared")
    lines = status_lines(found, usage.present_bytes, loaded.cache.directory)
    print("\n".join([*lines, *cluster]))
