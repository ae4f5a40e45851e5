"""The job on this node goes first: serving is slowed down or stops while one runs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import trio

from bdnfs.cache.jobs import is_job_here
from bdnfs.core.units import MIB
from bdnfs.serve.node.rate import Rate

_LOOKS_EVERY_S = 0.5
# While a job runs: a quarter of the cap, and no more than this in all and for each CPU. A job on one CPU lost 2.3 %
# of its steps to sending 30 to 41 MB/s (`benchmarks serving`), and none that could be measured to 8 MiB/s.
_PART, _THROTTLED_BYTES_S, _THROTTLED_CPU_BYTES_S = 4, 64 * MIB, 8 * MIB


class Yielding:
    """rate: what is sent to others; paused: nothing is. job: whether one runs here."""

    def __init__(self, root: Path, serve_rate: int | None, while_job: Literal["throttle", "pause"]) -> None:
        self._root, self._serve_rate, self._while_job = root, serve_rate, while_job
        self.rate = Rate(serve_rate)
        self.job = False

    @property
    def paused(self) -> bool:
        return self.job and self._while_job == "pause"

    @property
    def state(self) -> str:
        """open, throttled or paused."""
        return "open" if not self.job else "paused" if self.paused else "throttled"

    async def run(self, changed: Callable[[bool], None]) -> None:
        """Look for jobs, for ever. changed: is told when the first begins and when the last ends."""
        while True:
            job = await trio.to_thread.run_sync(is_job_here, self._root)
            if job != self.job:
                self.job = job
                self.rate.change(self._throttled() if job else self._serve_rate)
                changed(job)
            await trio.sleep(_LOOKS_EVERY_S)

    def _throttled(self) -> int:
        at_most = min(_THROTTLED_BYTES_S, _THROTTLED_CPU_BYTES_S * len(os.sched_getaffinity(0)))
        return at_most if self._serve_rate is None else max(1, min(self._serve_rate // _PART, at_most))
