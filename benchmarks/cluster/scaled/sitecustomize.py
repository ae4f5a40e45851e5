"""Imported by every Python that has this directory in PYTHONPATH: chunks as small as the data they are tried with.

What counts is how many chunks a node sees; a test of 8 MiB chunks in such numbers would take 140 GB.
"""

import os

if _bytes := os.environ.get("BDNFS_BENCHMARK_CHUNK_BYTES"):
    import bdnfs.core.ranges

    bdnfs.core.ranges.CHUNK_BYTES = int(_bytes)
