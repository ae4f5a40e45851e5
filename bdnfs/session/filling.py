"""Fill now, in this process: what `run` and `prefetch` do before anything is bound."""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import DeadlineError
from bdnfs.delivery.delivery import Delivery, open_delivery
from bdnfs.delivery.nursery import open_nursery
from bdnfs.delivery.progress import Progress
from bdnfs.delivery.resolve import Admitted
from bdnfs.session.interrupts import left_to_trio
from bdnfs.session.options import Options
from bdnfs.session.parts import Part, admit
from bdnfs.spec.config import Config
from bdnfs.spec.secret import Secrets

if TYPE_CHECKING:
    from bdnfs.cluster.peers import Peers

# Called every so often with the progress so far.
Show = Callable[[Progress], None]
_SHOW_S = 0.2


def fill(
    cache: NodeCache,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    show: Show,
    notes: Sequence[str] = (),
) -> list[Part]:
    """Make every part whole; return them with their trees and pins. notes: what to say first.

    Raises what keeps one of them from being whole, DeadlineError after options.timeout_s.
    """
    progress = Progress()
    for note in notes:
        progress.warn(note)
    with left_to_trio():
        return trio.run(_fill_shown, cache, config, parts, options, secrets, show, progress)


async def _fill_shown(
    cache: NodeCache,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    show: Show,
    progress: Progress,
) -> list[Part]:
    with trio.move_on_after(options.left_s(math.inf)) as scope:
        async with open_nursery() as nursery:
            nursery.start_soon(_show, progress, show)
            filled = await fill_parts(cache, config, parts, options, secrets, progress)
            nursery.cancel_scope.cancel()
            progress.state = "whole"
            show(progress)
            return filled
    assert scope.cancelled_caught
    raise DeadlineError(
        f"not everything was here after {options.timeout_s:g} s; what has been fetched is kept: "
        "run the same again to go on"
    )


async def _show(progress: Progress, show: Show) -> None:
    while True:
        show(progress)
        await trio.sleep(_SHOW_S)


async def fill_parts(
    cache: NodeCache,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    progress: Progress,
) -> list[Part]:
    """Admit and fill the parts that have no tree yet."""
    known, admitted = await admit_parts(cache, config, parts, options, secrets, progress)
    pins = [cache.pin(item.snapshot_id) for item in admitted]  # they outlive the delivery
    try:
        async with (
            peers_of(config, admitted, progress) as peers,
            open_delivery(cache, admitted, config.upstream, progress, peers=peers) as delivery,
        ):
            trees = await _fill_all(cache, delivery, admitted, progress)
    except BaseException:
        for pin in pins:
            pin.close()
        raise
    finally:
        for item in admitted:
            item.close()
    held = dict(zip((item.snapshot_id for item in admitted), pins, strict=True))
    return [
        part
        if part.tree is not None
        else replace(part, tree=trees[part.snapshot_id], pin=held[part.snapshot_id])
        for part in known
        if part.snapshot_id is not None
    ]


async def admit_parts(
    cache: NodeCache,
    config: Config,
    parts: Sequence[Part],
    options: Options,
    secrets: Secrets,
    progress: Progress,
) -> tuple[list[Part], list[Admitted]]:
    """Admit each part that has no tree; the same snapshot declared twice is admitted once."""
    progress.state = "resolving"
    known: list[Part] = []
    admitted: dict[str, Admitted] = {}
    try:
        for part in parts:
            if part.tree is None:
                part, item = await trio.to_thread.run_sync(
                    admit, cache, config, part, options, secrets, progress.warn, abandon_on_cancel=True
                )
                if item is not None and item.snapshot_id in admitted:
                    item.close()
                    item.pin.close()
                elif item is not None:
                    admitted[item.snapshot_id] = item
            known.append(part)
    except BaseException:
        for item in admitted.values():
            item.close()
            item.pin.close()
        raise
    return known, list(admitted.values())


async def mirror(cache: NodeCache, item: Admitted, progress: Progress) -> None:
    """Let the mirror take the rest of a snapshot that is whole here, if it took part in filling it."""
    if item.mirrored is not None:
        await item.mirrored.publish(cache, item.record.blobs, progress.warn)


async def _fill_all(
    cache: NodeCache, delivery: Delivery, admitted: Sequence[Admitted], progress: Progress
) -> dict[str, Path]:
    """Fill every snapshot of the delivery, one after the other; return the trees by snapshot id."""
    items = {item.snapshot_id: item for item in admitted}
    trees: dict[str, Path] = {}
    for snapshot in delivery.in_turn():
        progress.state = "fetching"
        trees[snapshot.id] = await delivery.fill(snapshot)
        progress.state = "mirroring"
        await mirror(cache, items[snapshot.id], progress)
    return trees


@asynccontextmanager
async def peers_of(
    config: Config, admitted: Sequence[Admitted], progress: Progress
) -> "AsyncIterator[Peers | None]":
    """Yield the peers that are asked before the mirror, None without a cluster, or where it takes no part."""
    if config.cluster is None or all(item.digests is None for item in admitted):
        yield None
        return
    from bdnfs.cluster.peers import open_peers

    async with open_peers(config.cluster, progress.warn) as peers:
        yield peers
