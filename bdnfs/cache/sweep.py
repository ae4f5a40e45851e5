"""What processes that died left behind: found and removed by the next that makes room or admits."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bdnfs.cache.blobs import blob_id
from bdnfs.cache.layout import Layout
from bdnfs.cache.ledger import Ledger
from bdnfs.cache.pins import Scanner, is_pinned, mounted, remove_pin_file
from bdnfs.cache.records import read_record
from bdnfs.cache.rows import Record
from bdnfs.cache.trees import builder_of
from bdnfs.cache.writers import Writers


class Sweep:
    """Finds what belongs to no row; runs under the index's exclusive lock, so that nothing is half made.

    What one process deletes others may find in the trash: deleting it twice is no harm.
    """

    def __init__(self, layout: Layout, scan: Scanner, writers: Writers) -> None:
        self._layout = layout
        self._scan = scan
        self._writers = writers

    def sweep(self, ledger: Ledger) -> list[Path]:
        """Move everything into the trash that nothing refers to; return what in there may be deleted."""
        if ledger.built:  # before that, records and trees are all that a rebuild has
            self._windows(ledger)
            self._graves(ledger)
            self._records(ledger)
            self._trees(ledger)
            self._pins(ledger)
            self._writers.sweep()
        return self.dead(ledger)

    def dead(self, ledger: Ledger) -> list[Path]:
        """Return what lies in the trash and may be deleted; a tree whose eviction broke off goes back."""
        dead, scan = [], None
        for name in _names(self._layout.trash):
            path = self._layout.trash / name
            if not path.is_dir() or path.is_symlink():
                dead.append(path)
                continue
            snapshot = name.partition(".")[0]
            row = ledger.snapshot(snapshot) if snapshot else None  # drafts begin with a dot
            tree = self._layout.tree(snapshot)
            scan = scan or self._scan()
            if row is not None and row.whole and not tree.exists():
                self._layout.unearth(path, tree)
            elif not mounted(scan, name, "trash"):
                dead.append(path)
        return dead

    def _windows(self, ledger: Ledger) -> None:
        for snapshot, row in list(ledger.snapshots()):
            if row.window and not is_pinned(self._layout, snapshot):
                record = read_record(self._layout, snapshot)
                ledger.delete_blobs(own_blobs(record) if record else ())
                ledger.delete_snapshot(snapshot)

    def _graves(self, ledger: Ledger) -> None:
        for blob in ledger.graves():
            if ledger.blob(blob) is None:
                self._layout.bury(self._layout.blob(blob))
            ledger.close_grave(blob)

    def _records(self, ledger: Ledger) -> None:
        for name in _names(self._layout.snapshots):
            if name.startswith(".") or ledger.snapshot(name) is None:
                with suppress(OSError):
                    (self._layout.snapshots / name).unlink()

    def _trees(self, ledger: Ledger) -> None:
        for name in _names(self._layout.trees):
            builder = builder_of(name)
            if ledger.snapshot(name) is None if builder is None else not self._is_alive(builder):
                self._layout.bury(self._layout.trees / name)

    def _is_alive(self, writer: str) -> bool:
        try:
            return self._writers.is_alive(bytes.fromhex(writer))
        except ValueError:
            return False

    def _pins(self, ledger: Ledger) -> None:
        for name in _names(self._layout.pins):
            if ledger.snapshot(name) is None:
                remove_pin_file(self._layout, name)


def own_blobs(record: Record) -> set[bytes]:
    """Return the blobs that belong to this window alone."""
    if not record.salt:
        return set()
    return {
        blob
        for file, blob in zip(record.manifest.files, record.blobs, strict=True)
        if blob and blob == blob_id(record.manifest.origin, file, record.salt, record.manifest.tenant)
    }


def _names(directory: Path) -> Iterator[str]:
    return iter(sorted(os.listdir(directory)))
