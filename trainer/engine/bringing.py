"""CREATED: what the job declares is pinned and brought near, and then it waits for its turn. No compute is held."""

import contextlib
import os
import time
from collections.abc import Iterator

import bdnfs
from trainer.engine.delivery import DeliveryError
from trainer.engine.pauses import Pauses
from trainer.engine.supervised import UPSTREAM, Supervised, text
from trainer.engine.supervising import sweep
from trainer.jobs.steps import reach
from trainer.scheduling import LocalMachine, machine_gpus
from trainer.storage.training_cache import check_room

_SWEEP_S = 5.0


class FarBackError(Exception):
    """The job waits far back in the queue: whoever ends, or waits before it, starts a supervisor when it is near."""


def bring_and_wait(job: Supervised) -> None:
    """Bring the job to DEPLOYING; raise FarBackError where nobody needs to wait for its turn yet."""
    reach("created:entered")
    if job.record().ready_s is None:
        job.check_stop()
        _bring(job)
        for path in (each for each in job.caches().values() if each.name != "huggingface"):
            # It looks at every file: not while compute is held.
            check_room(path, job.config.cache_bytes)
        job.store.ready(job.id)
        reach("created:queued")
    machine = LocalMachine(job.store, job.config.slots, machine_gpus(job.config.gpus))
    said, swept_s, pauses = False, 0.0, Pauses()
    while not machine.acquire(job.record()):
        if not said:
            job.log.say("waits for a slot of this machine, by priority, then age")
            said = True
        job.check_stop()
        if not machine.is_near(job.record()):
            raise FarBackError
        if time.monotonic() > swept_s + _SWEEP_S:
            # Others that lost their supervisor may hold the slot this one waits for.
            swept_s = time.monotonic()
            sweep(job.config, job.store, but=job.id)
        pauses.pause()
    job.log.say("DEPLOYING")


def _bring(job: Supervised) -> None:
    """Resolve what the job declares, and bring it near: into the mirror, or else into the node's cache."""
    if not job.write_spec():
        return
    spec = str(job.directory.spec)
    if not job.directory.spec_lock.exists():
        with _if_upstream_answers(job):
            job.call("resolving", "lock", spec)
    reach("created:resolved")
    config = bdnfs.load_config(text(job.config.bdnfs_config), os.environ)
    mirrored = False
    if config.mirror is not None:
        with _if_upstream_answers(job):
            job.call("mirroring", "mirror", spec)
            mirrored = True
    if not mirrored:
        job.call("filling", "prefetch", spec)
    reach("created:whole")


@contextlib.contextmanager
def _if_upstream_answers(job: Supervised) -> Iterator[None]:
    """Go on where upstream gives no answer: what was seen last may be here, or in the mirror.

    If it is not, `bdnfs prefetch` says what is wrong.
    """
    try:
        yield
    except DeliveryError as error:
        if error.exit_code != UPSTREAM:
            raise
        job.log.say(f"{error}; what was seen last is used, if it is here or in the mirror")
