"""Fills and reads against a real Hub, in this process or in children that may be killed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import trio

from bdnfs.cache.node import NodeCache
from bdnfs.core.steps import on_step
from bdnfs.delivery.delivery import Delivery, open_delivery
from bdnfs.delivery.progress import Progress
from bdnfs.delivery.resolve import Admitted
from bdnfs.manifest.model import Manifest
from bdnfs.origins.base import Origin
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import UpstreamConfig
from bdnfs.spec.source import parse_source
from tests.unit.cache.stocked import SELECTION, open_cache

REPO = "org/model"
WAIT_S = 40.0
T = TypeVar("T")

# Children fork from a server that has everything imported and no threads.
children = multiprocessing.get_context("forkserver")
children.set_forkserver_preload(["tests.unit.delivery.downloads", "trio", "bdnfs.delivery.delivery"])


def upstream(**fields: Any) -> UpstreamConfig:
    return UpstreamConfig(**{"fetches_max": 4, "stall_s": 5.0, "attempts": 4, **fields})


def hub_origin(url: str, repo: str = REPO) -> Origin:
    return open_origin(parse_source(f"hf://{repo}"), upstream(hf_endpoint=url))


def listed(origin: Origin, revision: str | None = None) -> Manifest:
    """Return the manifest of what the origin has now."""
    commit = origin.resolve(revision)
    files = tuple(sorted(origin.list(commit), key=lambda file: file.path))
    return Manifest(f"hf://{REPO}", origin.name, commit or "listing", files)


@asynccontextmanager
async def opened(
    cache: NodeCache,
    manifest: Manifest,
    origin: Origin,
    config: UpstreamConfig | None = None,
    progress: Progress | None = None,
    **fields: Any,
) -> AsyncIterator[Delivery]:
    """Admit the manifest and open delivery for it."""
    snapshot, pin = cache.admit(manifest, SELECTION, "main", "", window=bool(fields.get("window")))
    record = cache.record(snapshot)
    assert record is not None
    admitted = [Admitted(snapshot, record, pin, origin)]
    async with open_delivery(
        cache, admitted, config or upstream(), progress or Progress(), **fields
    ) as delivery:
        yield delivery


def within(task: Callable[[], Awaitable[T]], limit_s: float = WAIT_S) -> T:
    """Run a task that must end in time."""

    async def main() -> T:
        with trio.fail_after(limit_s):
            return await task()

    return trio.run(main)


def fill(
    cache: NodeCache, manifest: Manifest, origin: Origin, progress: Progress | None = None, **fields: Any
) -> Path:
    """Bring all of the manifest into the cache; return its tree."""

    async def main() -> Path:
        async with opened(cache, manifest, origin, progress=progress, **fields) as delivery:
            return await delivery.fill(delivery.snapshots[0])

    return within(main)


async def read(delivery: Delivery, path: str, start: int = 0, stop: int | None = None) -> bytes:
    """Read as a mount does: what is in memory at once, else by waiting."""
    files = [file.path for file in delivery.snapshots[0].manifest.files]
    index = files.index(path)
    size = delivery.snapshots[0].manifest.files[index].size
    into = bytearray((size if stop is None else stop) - start)
    if not delivery.read_now(0, index, start, memoryview(into)):
        await delivery.read(0, index, start, memoryview(into))
    return bytes(into)


@dataclass(frozen=True)
class Order:
    """What a child is to do: fill the repository's newest revision into the cache at directory.

    kill_at, kill_after: the step at which it kills itself, and how often that is passed before
    say: a file made once the child is ready; go: one it then waits for
    """

    url: str
    directory: Path
    kill_at: str = ""
    kill_after: int = 0
    steps: Path | None = None
    cache: Mapping[str, object] = field(default_factory=dict)
    delivery: Mapping[str, object] = field(default_factory=dict)


def fill_as_ordered(order: Order, go: Any = None) -> None:
    """The child's main: fills, and dies where it is told to."""
    passed: dict[str, int] = {}
    turn = threading.Lock()

    def note(step: str) -> None:
        with turn:  # no other thread gets anywhere between the note and the end
            passed[step] = passed.get(step, 0) + 1
            if order.steps is not None:
                with order.steps.open("a") as file:
                    file.write(f"{step}\n")
            if step == order.kill_at and passed[step] > order.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

    cache = open_cache(order.directory, **order.cache)
    origin = hub_origin(order.url)
    manifest = listed(origin)
    if go is not None:
        go.wait(WAIT_S)
    on_step(note)
    fill(cache, manifest, origin, **order.delivery)
    on_step(None)
    origin.close()
    cache.close()


def start(order: Order, go: Any = None) -> Any:
    child = children.Process(target=fill_as_ordered, args=(order, go))
    child.start()
    return child


def ended(child: Any, limit_s: float = WAIT_S) -> int:
    """Wait for a child; return its exit code, negative for the signal that ended it."""
    child.join(limit_s)
    assert not child.is_alive(), "a child did not end in time"
    code = child.exitcode
    child.close()
    return int(code)
