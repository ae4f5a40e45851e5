"""The named steps between which a process may die. Tests stop the process at each of them.

A step stands before the write it names is followed by the next one; `reach` is a no-op in
production. The list is the whole list: `reach` refuses a name that is not in it, so a new
write step can't be forgotten by the crash tests.
"""

from collections.abc import Callable

STEPS = (
    "resolve:listed",
    "resolve:seen",
    "admit:record-written",
    "admit:committed",
    "chunk:written",
    "chunk:committed",
    "chunk:rehashed",
    "sync:synced",
    "sync:committed",
    "blob:verified",
    "blob:sealed",
    "blob:committed",
    "tree:linked",
    "tree:renamed",
    "snapshot:committed",
    "snapshot:lost",
    "index:committing",
    "index:committed",
    "index:set-aside",
    "rebuild:entered",
    "rebuild:buried",
    "verify:found",
    "verify:sealed",
    "blob:forgotten",
    "pin:committed",
    "window:punched",
    "lock:drafted",
    "lock:replaced",
    "mount:made",
    "mount:started",
    "mount:daemon-ready",
    "mount:recorded",
    "mount:shown",
    "mount:bound",
    "mount:native",
    "handoff:beneath",
    "handoff:detached",
    "import:entered",
    "import:placed",
    "import:charged",
    "import:verified",
    "import:moved",
    "import:published",
    "import:finished",
    "evict:tree-renamed",
    "evict:committed",
    "evict:unlinked",
    "unmount:stopped",
    "unmount:detached",
    "unmount:removed",
    "ingest:chunk-put",
    "ingest:chunkmap-put",
    "ingest:flushed",
    "ingest:remembered",
    "ingest:manifest-put",
    "ingest:version-put",
    "ingest:revision-put",
    "ingest:published",
    "mirror:object-staged",
    "mirror:object-typed",
    "mirror:object-shown",
)

_hook: Callable[[str], None] | None = None


def on_step(hook: Callable[[str], None] | None) -> None:
    """Call hook with each step's name as it is reached; None ends that. For tests."""
    global _hook
    _hook = hook


def reach(step: str) -> None:
    """Say that step has been reached."""
    if _hook is not None:
        if step not in STEPS:
            raise ValueError(f"unknown step {step!r}: name it in bdnfs.core.steps.STEPS")
        _hook(step)
