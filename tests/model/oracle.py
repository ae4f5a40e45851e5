"""What a node should have and do, as plain dicts: what `test_mounts.py` holds the real one against."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.units import MIB
from tests.unit.cache.stocked import content

# Few contents, so that snapshots share them; sizes on both sides of a chunk's edge; more than fit at once.
CONTENTS = {
    name: content(name, size)
    for name, size in {
        "nothing": 0,
        "a": 1,
        "b": 5000,
        "c": CHUNK_BYTES,
        "d": CHUNK_BYTES + 1,
        "e": 3 * MIB,
        "f": 2 * CHUNK_BYTES + 4321,
        "g": 3 * CHUNK_BYTES - 1,
        "h": 2 * CHUNK_BYTES + 7,
    }.items()
}
PATHS = ("config.json", "model.safetensors", "model-2.bin", "sub/x.bin", "sub/dir/y.safetensors")
CAPACITY_BYTES = 64 * MIB
Files = dict[str, bytes]


@dataclass
class Mounted:
    """What is at one location. state: filling, whole, window, or dead (its daemon was killed)."""

    revision: str
    state: str
    # Upstream was away while it filled: what is not here may be an error for a while longer.
    troubled: bool = False


@dataclass
class Handle:
    """An open file.

    location: where it was opened; None once that was unmounted
    native:   opened on the finished tree: nothing takes it away any more
    lost:     its daemon has ended
    """

    revision: str
    path: str
    location: str | None
    native: bool
    lost: bool = False


@dataclass
class Oracle:
    """The dicts."""

    files: dict[str, Files] = field(default_factory=dict)  # by revision, oldest first
    mounts: dict[str, Mounted] = field(default_factory=dict)  # by location
    handles: dict[int, Handle] = field(default_factory=dict)
    # Revisions of files that were closed: the daemon that served them takes a moment to end.
    closed: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)  # revisions that `pin` keeps
    whole: set[str] = field(default_factory=set)  # revisions that are surely here
    seen: set[str | None] = field(default_factory=lambda: {None})  # where the branch may have been seen last
    touched: set[str] = field(default_factory=set)  # revisions ever asked for
    upstream: str = "up"

    @property
    def newest(self) -> str:
        return list(self.files)[-1]

    @property
    def listed(self) -> bool:
        """Whether upstream says what there is."""
        return self.upstream != "down"

    @property
    def fetched(self) -> bool:
        """Whether upstream gives what there is."""
        return self.upstream in ("up", "slow")

    def bytes_of(self, revisions: Iterable[str]) -> int:
        """Return what the snapshots need together: equal files are kept once."""
        # What is not in LFS has a digest of another kind, and so a blob of its own.
        contents = {
            (path == "config.json" and len(data) < 10 * MIB, data)
            for revision in revisions
            for path, data in self.files[revision].items()
        }
        return sum(len(data) for _, data in contents)

    def surely_kept(self) -> set[str]:
        """Return the revisions that nothing may evict."""
        live = {each.revision for each in self.mounts.values() if each.state in ("filling", "whole")}
        return self.dates | live

    def perhaps_kept(self) -> set[str]:
        """Return the revisions that something may still hold."""
        mounted = {each.revision for each in self.mounts.values() if each.state != "window"}
        return self.dates | mounted | {each.revision for each in self.handles.values()}

    def window_bytes(self) -> int:
        """Return what the windows may have taken, each for itself."""
        windows = [each for each in self.mounts.values() if each.state in ("window", "dead")]
        return sum(self.bytes_of([each.revision]) for each in windows)

    def may_not_fit(self, revision: str) -> bool:
        return self.bytes_of({revision} | self.perhaps_kept()) + self.window_bytes() > CAPACITY_BYTES

    def can_not_fit(self, revision: str) -> bool:
        return self.bytes_of({revision} | self.surely_kept()) > CAPACITY_BYTES

    def asked_for(self, revision: str) -> None:
        """Room was wanted for a snapshot: where not all fit, others may have gone."""
        self.touched.add(revision)
        if self.bytes_of(self.touched) + self.window_bytes() > CAPACITY_BYTES:
            self.whole &= self.surely_kept()

    def now_whole(self, revision: str) -> None:
        self.asked_for(revision)
        self.whole.add(revision)
