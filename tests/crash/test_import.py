"""An import killed at each of its steps: nothing is torn or left, and the next one goes on."""

import os
import signal
from pathlib import Path

import pytest

from bdnfs.core.ranges import CHUNK_BYTES
from bdnfs.core.steps import on_step
from bdnfs.core.units import MIB
from tests.unit.cache.stocked import (
    admit,
    check_books,
    content,
    disk_bytes,
    manifest_of,
    open_cache,
    orphans,
    shown,
    stock,
)
from tests.unit.delivery.downloads import children, ended
from tests.unit.session.hub_cached import download, imported

OLD = {"old.bin": content("old", 5 * MIB)}
NEW = {
    "a.bin": content("a", CHUNK_BYTES + 4097),
    "b.bin": content("b", 4097),
    "c.safetensors": content("c", MIB),
}
NEW_BYTES = sum(map(len, NEW.values()))
# The old one has to go.
FIELDS = {"capacity_bytes": NEW_BYTES + MIB}
STEPS = (
    "import:entered",
    "import:placed",
    "import:charged",
    "import:verified",
    "import:moved",
    "import:published",
    "import:finished",
)


def import_and_die(directory: str, hub: str, kill_at: str, after: int) -> None:
    passed = 0

    def die(step: str) -> None:
        nonlocal passed
        passed += step == kill_at
        if passed > after:
            os.kill(os.getpid(), signal.SIGKILL)

    cache = open_cache(Path(directory), **FIELDS)
    on_step(die)
    imported(cache, Path(hub))


@pytest.mark.parametrize(
    ("step", "after"),
    [
        *((step, 0) for step in STEPS),
        ("evict:committed", 0),
        ("index:committing", 3),
        *(
            pytest.param(step, after, marks=pytest.mark.long)
            for step, after in (
                ("evict:tree-renamed", 0),
                ("evict:unlinked", 0),
                ("import:verified", 2),
                ("index:committed", 3),
            )
        ),
    ],
)
def test_the_next_import_goes_on(tmp_path: Path, step: str, after: int) -> None:
    hub, directory = tmp_path / "hub", tmp_path / "cache"
    download(hub, NEW)
    cache = open_cache(directory, **FIELDS)
    stock(cache, OLD, "0" * 40)
    cache.close()
    child = children.Process(target=import_and_die, args=(str(directory), str(hub), step, after))
    child.start()
    assert ended(child) == -signal.SIGKILL

    cache = open_cache(directory, **FIELDS)
    check_books(cache)
    for blob, row in cache.blobs():
        assert not row.present or cache.verify_blob(blob) is None
    assert all(path.read_bytes() in NEW.values() for path in hub.glob("*/blobs/*"))

    assert imported(cache, hub).state == "whole"
    check_books(cache)
    usage = cache.usage()
    assert usage.charged_bytes == usage.present_bytes == NEW_BYTES
    cache.evict(unused_since_s=0, dry_run=False)  # sweeps, and finds nothing old enough
    assert not orphans(cache)
    assert disk_bytes(cache.layout.blobs) <= NEW_BYTES + 3 * 4096
    snapshot, pin = admit(cache, manifest_of(NEW))
    assert shown(cache.publish_snapshot(snapshot)) == NEW
    pin.close()
    cache.close()


@pytest.mark.parametrize("step", ["import:moved", "import:charged"])
def test_a_mount_instead_fetches_what_did_not_come(tmp_path: Path, step: str) -> None:
    """The same content by way of an origin, and what the dead import had linked is not written to."""
    hub, directory = tmp_path / "hub", tmp_path / "cache"
    download(hub, NEW)
    child = children.Process(target=import_and_die, args=(str(directory), str(hub), step, 0))
    child.start()
    assert ended(child) == -signal.SIGKILL
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in hub.glob("*/blobs/*")}
    cache = open_cache(directory, **FIELDS)
    stock(cache, NEW)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in hub.glob("*/blobs/*")} == before
    check_books(cache)
    cache.evict(unused_since_s=0, dry_run=False)
    assert not orphans(cache)
    cache.close()
