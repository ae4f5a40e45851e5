"""One job in the hands of its supervisor: what every step of its life uses."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from trainer.config import TrainerConfig
from trainer.engine import checkpointing
from trainer.engine.definition import Definition
from trainer.engine.delivery import DeliveryError, Moved, StopRequestedError, bdnfs_command, call
from trainer.engine.directory import JobDirectory, read_json, write_json
from trainer.engine.log import Log
from trainer.errors import HomeError
from trainer.jobs.record import Job
from trainer.jobs.store import Store
from trainer.loading import spec_of
from trainer.storage.training_cache import project_cache, team_cache

POLL_S = 0.1
# The exit code of `bdnfs` where upstream gives no usable answer; offline, where something is not on the node.
UPSTREAM = 5
_NOTE_S = 1.0
_CALLS_MAX = 3


class Supervised:
    """A job that has not ended. Only the holder of its supervisor's lock has one."""

    def __init__(self, config: TrainerConfig, store: Store, job_id: str) -> None:
        self.config, self.store, self.id = config, store, job_id
        self.directory = JobDirectory(config.job_directory(job_id))
        self.log = Log(self.directory.log)
        self.definition = Definition.of(store.job(job_id))

    def close(self) -> None:
        self.log.close()

    def record(self) -> Job:
        """Return the job as it is recorded now."""
        return self.store.job(self.id)

    def stopped(self) -> bool:
        return self.store.state(self.id)[1]

    def check_stop(self) -> None:
        """Raise StopRequestedError where a user has asked for the job's end."""
        if self.stopped():
            raise StopRequestedError

    @contextlib.contextmanager
    def if_there_is_room(self) -> Iterator[None]:
        """What is nice to have recorded, and must not end a job where the disk is full."""
        try:
            yield
        except HomeError as error:
            print(f"trainer: {error}", file=sys.stderr, flush=True)

    def call(self, phase: str, *words: str) -> str:
        """Run `bdnfs`, with what it moves recorded as the phase's."""
        self.store.begin(self.id, phase)
        noted_s, last = 0.0, Moved()

        def moved(now: Moved) -> None:
            nonlocal noted_s, last
            last = now
            if time.monotonic() > noted_s + _NOTE_S:
                noted_s = time.monotonic()
                self.store.moved(self.id, phase, now.total_bytes, now.tier_bytes)

        command = bdnfs_command(*words, "--progress", "json", config=self.config.bdnfs_config)
        for again in range(_CALLS_MAX):
            try:
                out = call(command, stopped=self.stopped, say=self.log.say, moved=moved)
                break
            except DeliveryError as error:
                if not error.killed or again == _CALLS_MAX - 1:
                    raise
                self.log.say(f"{error}; it goes on where that was")
        if last.total_bytes:
            self.store.moved(self.id, phase, last.total_bytes, last.tier_bytes)
        return out

    def write_spec(self) -> bool:
        """Write the spec of the job's weights, the checkpoints to load among them; say whether there are any."""
        if self.directory.spec.exists():
            return bool(read_json(self.directory.spec)["weights"])
        spec = spec_of(self.definition.project)
        loading = self.definition.project.job.runtime.load_checkpoint_config
        if loading is not None and loading.enabled:
            found = checkpointing.sources_to_load(self.config, self.store, self.record(), loading)
            spec["weights"] += [each.as_weights() for each in found]
        write_json(self.directory.spec, spec)
        return bool(spec["weights"])

    def caches(self) -> dict[str, Path]:
        """Return the directories of the training cache, by the name each has below the cache's base."""
        cache, job = self.definition.project.job.runtime.cache, self.record()
        if not cache.enabled:
            return {}
        own = project_cache(self.config.home, job.project_id)
        found = {"user_artifacts": own}
        if job.team:
            found["team_artifacts"] = team_cache(self.config.home, job.team)
        if cache.enable_legacy_hf_mount:
            found["huggingface"] = own / "huggingface"
            found["huggingface"].mkdir(exist_ok=True)
        return found


def joined(*parts: str) -> str:
    """Return what is said of several things in one line; "" says nothing."""
    return "; ".join(part for part in parts if part)


def text(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)
