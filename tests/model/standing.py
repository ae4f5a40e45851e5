"""A node for the state machine, and what it should be: how the two are looked at side by side."""

import random
import tempfile
import time
from itertools import count
from pathlib import Path

from hypothesis.stateful import RuleBasedStateMachine

from bdnfs.session.records import RecordDirectory
from benchmarks.servers.hub import HubServer
from tests.commands.forker import Forker
from tests.commands.node import Done, Node
from tests.model.oracle import CAPACITY_BYTES, Mounted, Oracle
from tests.model.resident import Resident


class Standing(RuleBasedStateMachine):
    """The node, and beside it what it should be."""

    hub: HubServer
    forker: Forker
    resident: Resident
    repos = count()

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="bdnfs-model-", dir="/var/tmp"))
        self.node = Node(self.place, self.hub.url, self.forker)
        upstream = {"attempts": 2, "stall": "5s"}
        self.node.configure(cache={"capacity": CAPACITY_BYTES}, upstream=upstream)
        self.repo = f"acme/model-{next(self.repos)}"
        self.oracle = Oracle()
        self.dice = random.Random(1)
        self.log: list[str] = []

    def chosen(self, which: int) -> str:
        return list(self.oracle.files)[which % len(self.oracle.files)]

    def location(self, place: str) -> str:
        return str(self.node.m / place)

    def command(self, *words: object) -> Done:
        began = time.monotonic()
        done = self.node.start(*words).wait(None)
        shown = " ".join(str(word) for word in words).replace(str(self.place), "")
        self.log.append(f"{shown} -> {done.code} {done.error[:300]!r} in {time.monotonic() - began:.1f} s")
        return done

    def is_whole_now(self, mounted: Mounted) -> None:
        mounted.state = "whole"
        self.oracle.now_whole(mounted.revision)

    def revision_at(self, location: str) -> str:
        records = (RecordDirectory(path).read() for path in (self.node.cache / "mounts").iterdir())
        found = [
            each.revision
            for record in records
            if record
            for each in record.mounts
            if each.location == location
        ]
        assert len(found) == 1, f"{location} is recorded {len(found)} times"
        return found[0]

    def look_at_the_dead(self) -> None:
        """Commands clear dead mounts; what is no more is no more, what is native is whole."""
        for location, mounted in list(self.oracle.mounts.items()):
            shown = self.node.shown(Path(location))
            if not shown and mounted.state == "dead":
                del self.oracle.mounts[location]
            elif shown == "native":
                self.is_whole_now(mounted)

    def is_dead(self, location: str) -> bool:
        """Look whether what is at location has lost its daemon, and say so in the dicts."""
        mounted = self.oracle.mounts[location]
        if mounted.state in ("filling", "window") and self.node.shown(Path(location)) == "fuse":
            records = [
                RecordDirectory(path) for path in (self.node.cache / "mounts").iterdir() if path.is_dir()
            ]
            alive = any(
                each.is_served()
                for each in records
                if (record := each.read()) and any(m.location == location for m in record.mounts)
            )
            if not alive:
                mounted.state = "dead"
        return mounted.state == "dead"
