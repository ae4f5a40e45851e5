"""Least recently used snapshots make room, whole blobs at a time; what is pinned never does.

Runs inside one write transaction, and in this order: what goes is chosen, and nothing is touched
where even that is not enough; trees are renamed to `trash/` and the mount tables looked at again
(renamed back where one came into use, or where the transaction is rolled back); rows go with the
commit; then, the index still locked, the blobs' files follow into `trash/`. A crash between leaves
a tree that is renamed back or a file whose grave is remembered (`bdnfs.cache.sweep`).
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec

from bdnfs.cache.layout import Layout, empty
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.pins import Scanner, is_pinned, mounted, pinned_by, remove_pin_file
from bdnfs.cache.records import read_record
from bdnfs.cache.rows import BlobRow, SnapshotRow
from bdnfs.core.steps import reach

# Deleting a blob's rows takes 100 bytes of new pages (measured); on a full disk there are 8 MiB of them.
BLOBS_AT_ONCE = 10_000

Enough = Callable[[int], bool]  # freed bytes → whether that will do


@dataclass(frozen=True)
class Holding:
    """A snapshot of the cache as the evictor sees it. pinned: why it may not go, or None.

    readable: its record is; else nobody knows which blobs are its own
    """

    snapshot_id: str
    row: SnapshotRow
    blobs: frozenset[bytes]
    pinned: str | None
    readable: bool = True


@dataclass
class Eviction:
    """What one transaction frees. What lies in the trash then goes in `bury`, after the commit.

    partial: there was too much for one transaction; the rest is for the next
    removes: files go; on the disk not before `bury`, and later still where somebody has one open
    """

    freed_bytes: int = 0
    snapshots: list[SnapshotRow] = field(default_factory=list)
    graves: list[Path] = field(default_factory=list)
    partial: bool = False
    removes: bool = False

    def bury(self) -> None:
        for grave in self.graves:
            empty(grave)
        if self.graves:
            reach("evict:unlinked")


@dataclass
class Choice:
    """What an eviction is to take. removals: each snapshot, and whether it loses only some of its blobs."""

    freed_bytes: int = 0
    blobs: dict[bytes, BlobRow] = field(default_factory=dict)
    discharged: dict[bytes, BlobRow] = field(default_factory=dict)  # charged for more than is there
    removals: list[tuple[Holding, bool]] = field(default_factory=list)


def choose(
    rows: dict[bytes, BlobRow],
    holdings: Sequence[Holding],
    wanted: frozenset[bytes],
    enough: Enough,
    most: int | None = None,
) -> Choice:
    """Choose what goes until enough(freed bytes), or `most` blobs: pure, touches nothing.

    First what no snapshot names, then the charge for bytes that nobody fetches any more, then windows
    without a daemon, then snapshots by their last use (the order of holdings). A blob goes with the
    last snapshot that names it. wanted: blobs that whoever asks for room is about to use.
    """
    choice = Choice()

    def done() -> bool:
        return enough(choice.freed_bytes) or (most is not None and len(choice.blobs) >= most)

    if done():
        return choice
    pinned = [item for item in holdings if item.pinned]
    protected = wanted.union(*(item.blobs for item in pinned))
    names = Counter(blob for item in holdings for blob in item.blobs)
    if any(not item.readable for item in pinned):
        return choice  # which blobs are in use can't be told
    for blob, row in rows.items():
        if blob in protected:
            continue
        if not names[blob]:
            if most is None or len(choice.blobs) < most:
                _take(choice, blob, row)
        elif row.charged > row.present:
            choice.discharged[blob] = row
            choice.freed_bytes += row.charged - row.present
    for item in sorted(holdings, key=lambda item: not item.row.window):
        if done():
            break
        if item.pinned:
            continue
        choice.freed_bytes += item.row.copied_bytes
        left = False
        for blob in sorted(item.blobs):
            if names[blob] == 1 and blob in rows and blob not in protected:
                if done() and not item.row.window:
                    left = True
                    continue
                _take(choice, blob, rows[blob])
            names[blob] -= 1
        choice.removals.append((item, left))
    return choice


def _take(choice: Choice, blob: bytes, row: BlobRow) -> None:
    choice.blobs[blob] = row
    discharged = choice.discharged.pop(blob, None)
    choice.freed_bytes += row.present if discharged else row.charged


class Evictor:
    """Chooses and removes."""

    def __init__(self, layout: Layout, scan: Scanner) -> None:
        self._layout = layout
        self._scan = scan
        self._known: dict[str, tuple[tuple[int, int], frozenset[bytes]]] = {}

    def survey(self, ledger: Ledger, but: Callable[[SnapshotRow], bool] | None = None) -> list[Holding]:
        """Return every snapshot, least recently used first, and what pins it; the caller holds the index.

        but: says of a snapshot that it is to stay.
        """
        scan = self._scan()
        trash = os.listdir(self._layout.trash)
        holdings = []
        for snapshot_id, row in sorted(ledger.snapshots(), key=lambda item: item[1].used_s):
            pinned, blobs = None, self._blobs_of(snapshot_id)
            if is_pinned(self._layout, snapshot_id):
                pinned = "in use by " + (", ".join(pinned_by(self._layout, snapshot_id)) or "another process")
            elif row.pinned_until_s > time.time() and blobs is not None:
                until = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.pinned_until_s))
                pinned = f"pinned until {until}"
            elif mounted(scan, snapshot_id) or any(
                mounted(scan, name, "trash") for name in trash if name.startswith(snapshot_id)
            ):
                pinned = "mounted"
            elif but is not None and but(row):
                pinned = "used since"
            holdings.append(
                Holding(snapshot_id, row, blobs or frozenset(), pinned, readable=blobs is not None)
            )
        return holdings

    def _blobs_of(self, snapshot_id: str) -> frozenset[bytes] | None:
        """Return the blobs that the snapshot's record names, read once for each version of it."""
        try:
            status = os.stat(self._layout.snapshots / snapshot_id, follow_symlinks=False)
        except OSError:
            return None
        stamp = (status.st_ino, status.st_mtime_ns)
        known = self._known.get(snapshot_id)
        if known is None or known[0] != stamp:
            record = read_record(self._layout, snapshot_id)
            if record is None:
                return None
            known = self._known[snapshot_id] = (stamp, frozenset(record.blobs) - {b""})
        return known[1]

    def make_room(
        self,
        ledger: Ledger,
        enough: Enough,
        *,
        wanted: frozenset[bytes] = frozenset(),
        everything: bool = False,
        but: Callable[[SnapshotRow], bool] | None = None,
    ) -> tuple[Eviction | None, list[Holding]]:
        """Evict until enough(freed bytes); None, and nothing touched, where it can't become enough.

        everything: whatever may go goes, enough or not. but: says of a snapshot that it stays.
        """
        holdings = self.survey(ledger, but)
        while True:
            rows = dict(ledger.blobs())
            choice = choose(rows, holdings, wanted, enough)
            if not everything and not enough(choice.freed_bytes):
                return None, holdings
            partial = len(choice.blobs) > BLOBS_AT_ONCE
            if partial:
                choice = choose(rows, holdings, wanted, enough, most=BLOBS_AT_ONCE)
            taken = [item.row for item, left in choice.removals if not (partial and left)]
            removes = bool(choice.blobs or choice.removals)
            eviction = Eviction(choice.freed_bytes, taken, partial=partial, removes=removes)
            in_use = self._bury_trees(ledger, choice, eviction)
            if not in_use:
                self._delete_rows(ledger, choice, eviction)
                return eviction, holdings
            holdings = [
                replace(item, pinned="mounted") if item.snapshot_id in in_use else item for item in holdings
            ]

    def _bury_trees(self, ledger: Ledger, choice: Choice, eviction: Eviction) -> set[str]:
        """Rename the trees into the trash; where one came into use meanwhile, undo that and name it."""
        buried: list[tuple[str, Path, Path]] = []
        try:
            for item, _ in choice.removals:
                tree = self._layout.tree(item.snapshot_id)
                grave = self._layout.bury(tree)
                if grave is not None:
                    buried.append((item.snapshot_id, tree, grave))
            if buried:
                reach("evict:tree-renamed")
            scan = self._scan() if buried else None
            in_use = {name for name, _, grave in buried if scan and mounted(scan, grave.name, "trash")}
        except BaseException:
            self._unearth(buried)
            raise
        if in_use:
            self._unearth(buried)
        else:
            ledger.txn.on_abort(partial(self._unearth, buried))
            eviction.graves += [grave for _, _, grave in buried]
        return in_use

    def _unearth(self, buried: list[tuple[str, Path, Path]]) -> None:
        for _, tree, grave in buried:
            self._layout.unearth(grave, tree)

    def _delete_rows(self, ledger: Ledger, choice: Choice, eviction: Eviction) -> None:
        for blob, row in choice.discharged.items():
            ledger.put_blob(blob, msgspec.structs.replace(row, charged=row.present))
        ledger.delete_blobs(choice.blobs)
        gone = []
        for item, left in choice.removals:
            if left:
                ledger.put_snapshot(
                    item.snapshot_id,
                    msgspec.structs.replace(item.row, whole=False, copies=(), copied_bytes=0),
                )
            else:
                ledger.delete_snapshot(item.snapshot_id)
                gone.append(item.snapshot_id)
        if choice.blobs or choice.removals:
            ledger.txn.after_commit(partial(self._bury_files, list(choice.blobs), gone, eviction))

    def _bury_files(self, blobs: list[bytes], snapshots: list[str], eviction: Eviction) -> None:
        reach("evict:committed")
        paths = [self._layout.blob(blob) for blob in blobs]
        paths += [self._layout.snapshots / snapshot for snapshot in snapshots]
        eviction.graves += [grave for path in paths if (grave := self._layout.bury(path)) is not None]
        for snapshot in snapshots:
            self._known.pop(snapshot, None)
            remove_pin_file(self._layout, snapshot)
