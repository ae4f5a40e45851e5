"""Upstream changes under a pinned snapshot: an error, or all of the old bytes; never a mixture."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdnfs.cache.node import NodeCache
from bdnfs.core.errors import BdnfsError, ChangedError, IntegrityError, NotFoundError
from bdnfs.core.ranges import CHUNK_BYTES
from tests.contract.servers import DirectorySite, HubSite, Site
from tests.unit.cache.stocked import check_books, content, orphans, shown
from tests.unit.delivery.downloads import opened, read, upstream, within
from tests.upstream.conftest import Fronts
from tests.upstream.fronts import KINDS, Front, assert_clear
from tests.upstream.proxy import Twist

MODEL = "model.safetensors"
OLD = content("old", CHUNK_BYTES + 50_000)
NEW = content("new", CHUNK_BYTES + 50_000)
LIMIT_S = 60.0


def replaced(site: Site) -> None:
    site.put("changing", {MODEL: NEW})


def truncated(site: Site) -> None:
    site.put("changing", {MODEL: OLD[: CHUNK_BYTES + 1000]})


def deleted(site: Site) -> None:
    site.put("changing", {"other.bin": b"other"})


CHANGES = (replaced, truncated, deleted)
# What is gone is not found; what is another is a change.
EXPECTED = (ChangedError, NotFoundError)


@pytest.fixture
def changing(fronts: Fronts, kind: str, tmp_path: Path) -> Iterator[Front]:
    """A server that holds the old file; `file` has no server and nothing before it."""
    found = (
        Front(kind, DirectorySite(tmp_path / "source"), fronts["nginx"].faults)
        if kind == "file"
        else fronts[kind]
    )
    found.faults.clear()
    found.site.put("changing", {MODEL: OLD})
    yield found
    found.faults.clear()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind != "nginx-no-ranges"), "file"])
def test_what_changes_between_two_reads_is_never_mixed(
    changing: Front, cache: NodeCache, change: Callable[[Site], None]
) -> None:
    manifest, origin = changing.manifest("changing", MODEL), changing.open("changing", MODEL)

    async def main() -> None:
        async with opened(cache, manifest, origin, upstream(attempts=2)) as delivery:
            assert await read(delivery, MODEL, 0, 1000) == OLD[:1000]
            change(changing.site)
            if changing.site.immutable:
                assert await read(delivery, MODEL) == OLD
                return
            with pytest.raises(EXPECTED) as caught:
                await read(delivery, MODEL)
            assert_clear(caught.value)
            with pytest.raises(EXPECTED):
                await delivery.fill(delivery.snapshots[0])
            # What was here stays right, for those who read it.
            assert await read(delivery, MODEL, 0, CHUNK_BYTES) == OLD[:CHUNK_BYTES]

    within(main, LIMIT_S)
    origin.close()
    assert changing.site.immutable or not any(cache.layout.trees.iterdir())
    check_books(cache)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sftp"])
def test_what_changes_in_the_middle_of_a_fill_is_never_sealed(
    changing: Front, cache: NodeCache, change: Callable[[Site], None]
) -> None:
    manifest, origin = changing.manifest("changing", MODEL), changing.open("changing", MODEL)
    changing.strike(Twist(act=lambda: change(changing.site)), times=1, after=1)
    if not changing.site.ranged:
        # One request brings it all, so it has to break off once to be asked for again.
        changing.faults.clear()
        changing.strike(Twist(truncate_at=CHUNK_BYTES + 10), times=1)
        changing.strike(Twist(act=lambda: change(changing.site)), times=1)

    async def main() -> Path:
        async with opened(cache, manifest, origin, upstream(attempts=3, fetches_max=1)) as delivery:
            return await delivery.fill(delivery.snapshots[0])

    if changing.site.immutable:
        assert shown(within(main, LIMIT_S)) == {MODEL: OLD}
    else:
        with pytest.raises(EXPECTED) as caught:
            within(main, LIMIT_S)
        assert_clear(caught.value)
        assert not any(cache.layout.trees.iterdir())
    origin.close()
    check_books(cache)
    assert orphans(cache) == set()


@pytest.mark.parametrize("kind", ["hub"])
def test_a_hub_whose_objects_change_under_their_commit_is_found_out(
    changing: Front, cache: NodeCache, tmp_path: Path
) -> None:
    manifest, origin = changing.manifest("changing", MODEL), changing.open("changing", MODEL)
    site = changing.site
    assert isinstance(site, HubSite)
    # The digest is the object's name; what is behind it is exchanged once the first chunk has come.
    digest = str(manifest.files[0].digest).partition(":")[2]
    (stored,) = site.directory.glob(f"**/.objects/{digest}")
    other = tmp_path / "other"

    def exchange() -> None:
        other.write_bytes(NEW)
        other.replace(stored)

    changing.strike(Twist(act=exchange), times=1, after=1)

    async def main() -> None:
        async with opened(cache, manifest, origin, upstream(attempts=2, fetches_max=1)) as delivery:
            with pytest.raises(IntegrityError) as caught:
                await delivery.fill(delivery.snapshots[0])
            assert_clear(caught.value)
            with pytest.raises(BdnfsError):
                await read(delivery, MODEL, 0, 1000)

    within(main, LIMIT_S)
    origin.close()
    assert not any(cache.layout.trees.iterdir())
    check_books(cache)
