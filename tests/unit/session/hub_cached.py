"""Hugging Face cache directories written by hand, as huggingface_hub lays them out."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from bdnfs.cache.node import NodeCache
from bdnfs.session.hub_cache import scan
from bdnfs.session.importing import Import, Importer

COMMIT = "a" * 40


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def download(
    directory: Path,
    files: Mapping[str, bytes],
    repository: str = "models--acme--tiny",
    commit: str = COMMIT,
    *,
    links: bool = True,
) -> Path:
    """Write files as if they had been downloaded; return the snapshot. links: as on a filesystem that has them."""
    snapshot = directory / repository / "snapshots" / commit
    blobs = directory / repository / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        place = snapshot / path
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / (sha256(data) if path.endswith((".bin", ".safetensors")) else git_sha1(data))
        if links:
            blob.write_bytes(data)
            place.symlink_to(os.path.relpath(blob, place.parent))
        else:
            place.write_bytes(data)
    return snapshot


def imported(
    cache: NodeCache, directory: Path, left_out: list[str] | None = None, tenant: str = ""
) -> Import:
    """Import the directory; note in left_out what was left out and why."""
    said = [] if left_out is None else left_out
    downloads = scan(directory, lambda path, why: said.append(f"{path.relative_to(directory)}: {why}"))
    return Importer(cache, downloads, lambda _: None, tenant).run()


def outcomes(done: Import) -> dict[str, str]:
    """Return what became of each file, by path."""
    return {
        file.path: result.outcome
        for download, results in done.results
        for file, result in zip(download.files, results, strict=True)
    }
