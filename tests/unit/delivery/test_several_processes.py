"""Several processes fill one snapshot: each byte leaves the Hub once, whoever dies on the way."""

import os
import signal
from pathlib import Path

import pytest

from bdnfs.core.ranges import CHUNK_BYTES
from benchmarks.servers.hub import HubServer
from tests.unit.cache.stocked import check_books, content, disk_bytes, open_cache, orphans, shown, until
from tests.unit.delivery.downloads import REPO, Order, children, ended, hub_origin, listed, start

FILES = {
    "config.json": b"{}",
    "empty.txt": b"",
    "model-1.safetensors": content("one", 5 * CHUNK_BYTES + 4097),
    "model-2.safetensors": content("two", 3 * CHUNK_BYTES),
    "copy-of-2.safetensors": content("two", 3 * CHUNK_BYTES),
    **{f"small/{number}.json": content(f"small {number}", 500 + number) for number in range(40)},
}
UNIQUE_BYTES = sum(len(data) for path, data in FILES.items() if not path.startswith("copy"))


def check_whole(directory: Path, url: str) -> None:
    """Fail unless the snapshot stands whole and right, and nothing else takes space."""
    cache = open_cache(directory)
    try:
        origin = hub_origin(url)
        snapshot, pin = cache.admit(listed(origin), "", "main", "")
        origin.close()
        tree = cache.whole_tree(snapshot)
        assert tree is not None
        assert shown(tree) == FILES
        check_books(cache)
        usage = cache.usage()
        assert usage.charged_bytes == usage.present_bytes == UNIQUE_BYTES
        assert not orphans(cache)
        assert not [path for path in cache.layout.writers.iterdir() if path.name != cache.writer.hex()]
        assert disk_bytes(cache.layout.blobs) < UNIQUE_BYTES + 4096 * (len(FILES) + 1)
        pin.close()
    finally:
        cache.close()


def test_four_at_once_fetch_each_byte_once(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(REPO, FILES)
    hub.reset()
    go = children.Event()
    fillers = [start(Order(hub.url, tmp_path / "cache"), go) for _ in range(4)]
    go.set()
    assert [ended(filler) for filler in fillers] == [0] * 4
    assert hub.bytes_sent == UNIQUE_BYTES
    check_whole(tmp_path / "cache", hub.url)


@pytest.mark.parametrize("step", ["chunk:written", "blob:verified"])
def test_one_of_three_is_killed_and_the_others_finish(hub: HubServer, tmp_path: Path, step: str) -> None:
    hub.commit(REPO, FILES)
    hub.reset()
    go = children.Event()
    # The one that dies has most of it to itself.
    victim = start(Order(hub.url, tmp_path / "cache", kill_at=step, kill_after=3), None)
    others = [start(Order(hub.url, tmp_path / "cache"), go) for _ in range(2)]
    go.set()
    assert ended(victim) in (-signal.SIGKILL, 0)
    assert [ended(other) for other in others] == [0, 0]
    assert UNIQUE_BYTES <= hub.bytes_sent <= UNIQUE_BYTES + 4 * CHUNK_BYTES
    check_whole(tmp_path / "cache", hub.url)


def test_a_fill_killed_from_outside_goes_on_where_it_was(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(REPO, FILES)
    hub.faults.add(match="model|two|one", slow_bytes_per_s=40 << 20, times=None)
    hub.reset()
    victim = start(Order(hub.url, tmp_path / "cache"))
    until(lambda: hub.bytes_sent > 3 * CHUNK_BYTES, "some bytes")
    os.kill(victim.pid, signal.SIGKILL)
    assert ended(victim) == -signal.SIGKILL
    hub.faults.clear()
    assert ended(start(Order(hub.url, tmp_path / "cache"))) == 0
    assert hub.bytes_sent <= UNIQUE_BYTES + 4 * CHUNK_BYTES
    check_whole(tmp_path / "cache", hub.url)


def test_a_stopped_filler_is_named_and_waited_for_no_longer_than_said(hub: HubServer, tmp_path: Path) -> None:
    hub.commit(REPO, {"model.safetensors": content("stopped", 2 * CHUNK_BYTES)})
    hub.faults.add(match="/[0-9a-f]{64}|model", slow_bytes_per_s=6 << 20, times=None)
    hub.reset()
    stopped = start(Order(hub.url, tmp_path / "cache"))
    until(lambda: hub.bytes_sent > 100_000, "some bytes")
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        cache = open_cache(tmp_path / "cache")
        origin = hub_origin(hub.url)
        from bdnfs.core.errors import CacheError
        from tests.unit.delivery.downloads import fill

        manifest = listed(origin)
        with pytest.raises(CacheError, match=rf"pid {stopped.pid}, stopped"):
            fill(cache, manifest, origin, busy_timeout_s=0.5)
        origin.close()
        cache.close()
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    hub.faults.clear()
    assert ended(stopped) == 0
