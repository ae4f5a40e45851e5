"""What `cache import` reads from the environment, and what it says in the end."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bdnfs.core.errors import BdnfsError, IntegrityError, SpaceError, UpstreamError
from bdnfs.core.units import format_size
from bdnfs.session.importing import Import

_HOWS = {"reflink": "reflinked", "hardlink": "hardlinked", "copy": "copied", "here": "here already"}
_FAILURES = ("damaged", "no room", "unreadable", "lost")


def hub_cache_directory(environment: Mapping[str, str]) -> str:
    """Return where the Hub's client keeps its downloads (huggingface_hub/constants.py)."""
    home = environment.get("HOME") or os.path.expanduser("~")
    caches = environment.get("XDG_CACHE_HOME") or f"{home}/.cache"
    hub_home = environment.get("HF_HOME") or f"{caches}/huggingface"
    found = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or f"{hub_home}/hub"
    return os.path.expandvars(os.path.expanduser(found))


def import_lines(done: Import, *, dry_run: bool) -> Iterator[str]:
    """Yield a line for each download, a line for each file that did not come, and the sum."""
    for download, results in done.results:
        counts = Counter[str](result.outcome for result in results)
        said = ", ".join(f"{counts[name]} {word}" for name, word in _said(dry_run=dry_run) if counts[name])
        size = format_size(sum(file.size for file in download.files))
        yield f"{download.source.key}@{(download.source.revision or '')[:12]}  {len(results)} files  {size}  {said}"
        for result in results:
            if result.error is not None:
                yield f"    {printable(str(result.error))}"
    sizes = dict.fromkeys(_HOWS, 0)
    for download, results in done.results:
        for file, result in zip(download.files, results, strict=True):
            if result.outcome in sizes:
                sizes[result.outcome] += file.size
    said = ", ".join(
        f"{format_size(sizes[name])} {word}" for name, word in _said(dry_run=dry_run) if sizes.get(name)
    )
    yield f"{said or 'nothing'}{' (nothing was changed)' if dry_run else ''}"


def printable(text: str) -> str:
    """Return text so that no name in it can move a terminal's cursor, or begin a line of its own."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _said(*, dry_run: bool) -> list[tuple[str, str]]:
    hows = [
        (name, f"would be {word}" if dry_run and name != "here" else word) for name, word in _HOWS.items()
    ]
    return hows + [(name, name) for name in _FAILURES]


def import_json(directory: Path, done: Import, left_out: Sequence[tuple[Path, str]], *, dry_run: bool) -> str:
    """Return it as JSON: every file, and what became of it."""
    return json.dumps(
        {
            "directory": str(directory),
            "dry_run": dry_run,
            "downloads": [
                {
                    "source": download.source.key,
                    "revision": download.source.revision,
                    "files": [
                        {
                            "path": file.path,
                            "bytes": file.size,
                            "digest": file.digest,
                            "outcome": result.outcome,
                            "error": None if result.error is None else str(result.error),
                        }
                        for file, result in zip(download.files, results, strict=True)
                    ],
                }
                for download, results in done.results
            ],
            "left_out": [{"path": str(path), "why": why} for path, why in left_out],
        }
    )


def import_error(directory: Path, done: Import) -> BdnfsError | None:
    """Return what the command ends with: damage before want of room before what could not be read."""
    errors = done.errors
    if not errors:
        return None
    kind = next(
        (kind for kind in (IntegrityError, SpaceError) if any(isinstance(e, kind) for e in errors)), None
    )
    return (kind or UpstreamError)(
        f"{directory}: {len(errors)} of {done.files} files did not come in, the first: {errors[0]}"
    )
