"""Nodes of one cluster on loopback, over a mirror in a directory: one that has everything, one that has nothing yet."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import BenchmarkError, timed
from benchmarks.workplace import BDNFS, remove_tree

_START_S = 60.0


@dataclass(frozen=True)
class Member:
    """One node: its config, its cache and what its commands run with."""

    home: Path
    environment: dict[str, str]

    @property
    def config(self) -> Path:
        return self.home / "config.yaml"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    def empty(self) -> None:
        """Remove all that it has; its `bdnfs node` must not run."""
        remove_tree(self.cache)
        # What the disk still owes to an earlier step is not this one's.
        os.sync()

    @contextmanager
    def serving(self) -> Iterator[None]:
        with running_node(self.config, self.environment, self.home / "node.log"):
            yield


@contextmanager
def open_members(
    home: Path, spec: Path, environment: Mapping[str, str], share_bytes: int
) -> Iterator[tuple[Member, Member]]:
    """Yield a node that holds whole what spec declares, and serves, and one that is empty; remove both at the end.

    home: a directory of their own, not there yet. The mirror is filled on the way, from upstream.
    """
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    members = []
    home.mkdir()
    try:
        for name, address in zip(("whole", "empty"), addresses, strict=True):
            member = Member(home / name, {**environment, "BDNFS_CACHE_DIR": str(home / name / "cache")})
            member.home.mkdir()
            cluster: dict[str, Any] = {"members": addresses, "listen": address, "share": share_bytes}
            config = {"cache": {"reserve": 0}, "mirror": str(home / "mirror"), "cluster": cluster}
            member.config.write_text(json.dumps(config))  # JSON is YAML
            members.append(member)
        whole, empty = members
        timed([*BDNFS, "prefetch", str(spec), "--config", str(whole.config)], whole.environment)
        with whole.serving():
            yield whole, empty
    finally:
        remove_tree(home)


@contextmanager
def running_node(
    config: Path, environment: Mapping[str, str], log: Path, *words: str, prefix: Sequence[str] = ()
) -> Iterator[None]:
    """Run `bdnfs node` until the block ends; raise BenchmarkError, with what it said, where it does not listen.

    prefix: the words of what is to run it elsewhere
    """
    with log.open("wb") as said:
        node = subprocess.Popen(
            [*prefix, *BDNFS, "node", "--config", str(config), *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    try:
        deadline_s = time.monotonic() + _START_S
        while "listening at" not in log.read_text():
            if node.poll() is not None or time.monotonic() > deadline_s:
                raise BenchmarkError(f"`bdnfs node` did not start; it said:\n{log.read_text()}")
            time.sleep(0.05)
        yield
    finally:
        node.send_signal(signal.SIGTERM)
        try:
            node.wait(_START_S)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
