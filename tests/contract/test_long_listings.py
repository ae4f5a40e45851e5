"""A hundred thousand objects: listed as their pages come, in bounded memory, within a minute."""

import json
import subprocess
import sys

import pytest

from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import UpstreamConfig
from bdnfs.spec.source import parse_source
from tests.contract.listing_server import PAGE_KEYS, ListingServer, key

COUNT = 100_000
LIMIT_S = 60.0
# A page and what it takes to parse it; a hundred pages would be some hundred MB.
GROWTH_BYTES_MAX = 40 << 20

PLACES = {"s3": "s3://bucket/data", "azure": "azure://account/box/data", "gs": "gs://bucket/data"}

CHILD = """
import json, resource, sys, time
from bdnfs.origins.registry import open_origin
from bdnfs.spec.config import UpstreamConfig
from bdnfs.spec.source import parse_source

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

place, fields = sys.argv[1], json.loads(sys.argv[2])
origin = open_origin(parse_source(place), UpstreamConfig(**fields))
entries = origin.list(None)
first = next(entries).path
before, began_s = peak(), time.monotonic()
count = 1 + sum(1 for _ in entries)
print(json.dumps({"first": first, "count": count, "grown": peak() - before, "s": time.monotonic() - began_s}))
origin.close()
"""


def fields(url: str) -> dict[str, dict[str, str]]:
    return {
        "aws": {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "hidden-key"},
        "azure": {"AZURE_STORAGE_ENDPOINT": f"{url}/account"},
        "google": {"STORAGE_EMULATOR_HOST": url},
    }


@pytest.mark.parametrize("kind", PLACES)
def test_a_hundred_thousand_objects_stream_in_bounded_memory(kind: str) -> None:
    with ListingServer(kind, COUNT) as server:
        argv = [sys.executable, "-c", CHILD, PLACES[kind], json.dumps(fields(server.url))]
        said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=2 * LIMIT_S).stdout
        found = json.loads(said)
        assert server.pages == COUNT // PAGE_KEYS
    assert found["count"] == COUNT
    assert found["first"] == key(0).removeprefix("data/")
    assert found["s"] < LIMIT_S
    assert found["grown"] < GROWTH_BYTES_MAX, found


@pytest.mark.parametrize("kind", PLACES)
def test_who_stops_listing_asks_no_further(kind: str) -> None:
    with ListingServer(kind, COUNT) as server:
        origin = open_origin(parse_source(PLACES[kind]), UpstreamConfig(**fields(server.url)))
        entries = origin.list(None)
        assert next(entries).size == 1
        # obstore may ask one page ahead of what is wanted.
        assert server.pages <= 2
        origin.close()
