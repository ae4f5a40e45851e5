"""A Hub that lists a million files: listed, checked and admitted in memory that is bounded and stated."""

from pathlib import Path

import pytest

from tests.unit.cache.stocked import finished, python
from tests.upstream.listings import listing_hub, many

FILES, MANY_FILES = 10_000, 1_000_000
# A million took 0.5 GB to list and 1.4 GB to admit, the index's mapped pages among them.
BASE_BYTES, FILE_BYTES = 150 << 20, 2000

CHILD = """
import re, sys
from pathlib import Path
from bdnfs.delivery.resolve import list_snapshot
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import UpstreamConfig
from bdnfs.spec.source import parse_source
from bdnfs.spec.weights import Weights
from tests.unit.cache.stocked import admit, open_cache
def peak():
    # Not ru_maxrss, which a child starts with its parent's.
    return int(re.search(r"VmHWM:\\s*([0-9]+)", Path("/proc/self/status").read_text())[1]) << 10
source = parse_source("hf://org/model")
origin = open_origin(source, UpstreamConfig(hf_endpoint=sys.argv[1]))
manifest = list_snapshot(origin, Weights(source, "m"), origin.resolve(None), lambda _: None)
origin.close()
listed = peak()
cache = open_cache(Path(sys.argv[2]))
snapshot, pin = admit(cache, manifest)
count = len(cache.record(snapshot).manifest.files)
pin.close()
cache.close()
print(count, listed, peak())
"""


def listed(count: int, directory: Path, limit_s: float) -> None:
    with listing_hub(many(count)) as server:
        (said,) = finished([python(CHILD, server.url, directory / "cache")], limit_s)
    found, listed_bytes, admitted_bytes = map(int, said.split())
    assert found == count
    assert listed_bytes < BASE_BYTES + count * FILE_BYTES
    assert admitted_bytes < BASE_BYTES + count * FILE_BYTES


def test_memory_for_many_files_is_bounded(tmp_path: Path) -> None:
    listed(FILES, tmp_path, 100.0)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_memory_for_a_million_files_is_bounded(tmp_path: Path) -> None:
    listed(MANY_FILES, tmp_path, 1700.0)
