"""Looks at a cache again and again, in a process of its own, and says what it saw at the worst moment.

Usage: python -m tests.concurrency.sampler CACHE. Prints "sampling", ends when stdin does, and prints
JSON then: samples, charged_bytes (the most), used_bytes (the most that the filesystem had in use, the
index left out), free_bytes (the least).
"""

import json
import os
import select
import sys
from pathlib import Path

from bdnfs.cache.node import open_node_cache
from bdnfs.fs.mounts import namespaces
from bdnfs.spec.config import CacheConfig


def main(directory: str) -> None:
    """Sample until stdin ends."""
    charged, used, samples = 0, 0, 0
    free: int | None = None
    with open_node_cache(CacheConfig(directory, reserve_bytes=0), namespaces) as cache:
        print("sampling", flush=True)
        while not select.select([sys.stdin], [], [], 0.002)[0]:
            status = os.statvfs(directory)
            free_bytes = status.f_bavail * status.f_frsize
            index = os.stat(Path(directory, "index.lmdb")).st_blocks * 512
            used = max(used, status.f_blocks * status.f_frsize - free_bytes - index)
            free = free_bytes if free is None else min(free, free_bytes)
            with cache.read() as ledger:
                charged = max(charged, ledger.charged_bytes)
            samples += 1
    found = {"samples": samples, "charged_bytes": charged, "used_bytes": used, "free_bytes": free}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
