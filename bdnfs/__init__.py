"""Model weights and datasets, mounted whole, verified, read-only, at the speed of the local disk.

import bdnfs

with bdnfs.mount("hf://Qwen/Qwen3-0.6B@main", "/app/models/qwen") as m:
    model = AutoModelForCausalLM.from_pretrained(m.path)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdnfs.api import (
        DeclaredSource,
        Mount,
        MountedSource,
        declared,
        job_here,
        load_config,
        mount,
        plan,
        prefetch,
        read_secret,
        unmount,
    )
    from bdnfs.core.errors import (
        BdnfsError,
        CacheError,
        ChangedError,
        CredentialsError,
        DeadlineError,
        IntegrityError,
        MountError,
        NotFoundError,
        SpaceError,
        SpecError,
        UnavailableError,
        UpstreamError,
    )

_API = (
    "DeclaredSource",
    "Mount",
    "MountedSource",
    "declared",
    "job_here",
    "load_config",
    "mount",
    "plan",
    "prefetch",
    "read_secret",
    "unmount",
)
_ERRORS = (
    "BdnfsError",
    "CacheError",
    "ChangedError",
    "CredentialsError",
    "DeadlineError",
    "IntegrityError",
    "MountError",
    "NotFoundError",
    "SpaceError",
    "SpecError",
    "UnavailableError",
    "UpstreamError",
)

__all__ = [
    "BdnfsError",
    "CacheError",
    "ChangedError",
    "CredentialsError",
    "DeadlineError",
    "DeclaredSource",
    "IntegrityError",
    "Mount",
    "MountError",
    "MountedSource",
    "NotFoundError",
    "SpaceError",
    "SpecError",
    "UnavailableError",
    "UpstreamError",
    "declared",
    "job_here",
    "load_config",
    "mount",
    "plan",
    "prefetch",
    "read_secret",
    "unmount",
]


def __getattr__(name: str) -> Any:
    """Import the API when it is first asked for: the command line needs none of it."""
    import importlib

    if name in _API:
        return getattr(importlib.import_module("bdnfs.api"), name)
    if name in _ERRORS:
        return getattr(importlib.import_module("bdnfs.core.errors"), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("bdnfs")
        except PackageNotFoundError:
            return "0+unknown"
    raise AttributeError(f"module 'bdnfs' has no attribute {name!r}")
