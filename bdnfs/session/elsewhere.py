"""Mounts in namespaces that are not ours: what records say of them, and what may be done about them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from bdnfs.cache.layout import Layout
from bdnfs.cache.pins import is_pinned
from bdnfs.fs.mounts import Scan, namespaces
from bdnfs.session.records import MountRecord, own_namespace, record_directories
from bdnfs.spec.config import CacheConfig

Where = Literal["here", "elsewhere", "gone"]


def where(layout: Layout, record: MountRecord) -> Where:
    """Say whether a record's mounts are in our mount namespace, in another, or gone with theirs."""
    if record.namespace in ("", own_namespace()):
        return "here"
    scan = namespaces()
    if record.namespace in scan.seen or not scan.complete:
        return "elsewhere"
    if scan.machine:
        return "gone"
    # A container's that can't be seen from this one: its keeper would hold the pins.
    pinned = any(is_pinned(layout, mounted.snapshot_id) for mounted in record.mounts)
    return "gone" if record.kept and not pinned else "elsewhere"


def scanner(config: CacheConfig) -> Callable[[], Scan]:
    """Return the scan for this cache: mounts that only a record tells of are among its roots.

    From a container the host's mounts can't be seen, and no process holds their pins.
    """
    layout = Layout(Path(config.directory))

    def scan() -> Scan:
        found = namespaces()
        if found.machine or not os.path.isdir(layout.mounts):
            return found
        records = (record for directory in record_directories(layout) if (record := directory.read()))
        told = {
            f"/trees/{mounted.snapshot_id}"
            for record in records
            if record.kind == "native" and not record.kept and record.namespace not in found.seen
            for mounted in record.mounts
        }
        return found._replace(roots=found.roots | told)

    return scan
