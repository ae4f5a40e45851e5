"""The files a job starts with: packed once at push, unpacked at each deploy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

GIB = 1 << 30
WORKSPACE_BYTES_MAX = 5 * GIB


@dataclass(frozen=True, kw_only=True)
class PackedWorkspace:
    """What pack_workspace wrote. JSON-able through dataclasses.asdict but for `archive` (a Path).

    digest: BLAKE3 of the archive, 64 hex digits; keep it with the job, unpack_workspace asks for it
    """

    archive: Path
    digest: str
    size_bytes: int
    files: int
    warnings: Sequence[str] = field(default_factory=tuple)


def pack_workspace(
    config: Path,
    archive: Path,
    *,
    workspace_root: str | None = None,
    external_dirs: Sequence[str] = (),
    exclude_dirs: Sequence[str] = (),
    bytes_max: int = WORKSPACE_BYTES_MAX,
) -> PackedWorkspace:
    """Write the workspace of config (the path of config.py) to archive, a tar file; durable when this returns.

    workspace_root: default the config's directory; relative paths are relative to that; it must hold config
    external_dirs:  directories outside the root; each appears at the top of the workspace by its name
    exclude_dirs:   names at the top of the root that are left out
    Symbolic links stay links and must stay inside; sockets, pipes and devices are left out with a warning.
    Raises SpecError: a directory that isn't there, names that collide, a link that leads out, more than
    bytes_max (names what is largest); SpaceError where the disk is full.
    """
    raise NotImplementedError


def unpack_workspace(archive: Path, digest: str, directory: Path) -> None:
    """Unpack archive as directory, which is replaced if it exists; whole and on the disk when this returns.

    Raises IntegrityError where the archive is not the one with that digest, or a path in it leads out of
    directory (then nothing is written there); SpaceError where the disk is full.
    """
    raise NotImplementedError
