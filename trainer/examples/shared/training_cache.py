"""What is fetched once into the training cache, and found there by the project's next jobs."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def once(name: str, fetch: Callable[[Path], None]) -> Path:
    """Return $BT_PROJECT_CACHE_DIR/name, filled by fetch(directory) if no job has done so before.

    Under its name it is whole: a job that is stopped in between leaves a draft, not half a dataset.
    """
    cache = Path(os.environ["BT_PROJECT_CACHE_DIR"])
    target = cache / name
    if target.exists():
        print(f"{target}: in the training cache already, nothing is fetched", flush=True)
        return target
    draft = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=cache))
    try:
        fetch(draft)
        try:
            draft.rename(target)
        except OSError:
            if not target.exists():  # else another job was first, and what it has will do
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(f"{target}: fetched into the training cache", flush=True)
    return target
