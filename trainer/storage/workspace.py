"""The files a job starts with: packed once at push, unpacked at each deploy."""

import errno
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from blake3 import blake3

from trainer.errors import ConfigError
from trainer.storage.errors import DamagedError, SpaceError
from trainer.storage.scratch import remove_tree

WORKSPACE_BYTES_MAX = 5 * 10**9
_PIECE_BYTES = 1 << 20
_SHOWN_MAX = 5


@dataclass(frozen=True, kw_only=True)
class PackedWorkspace:
    """What pack_workspace wrote: a tar file of size_bytes.

    digest: BLAKE3 of the archive, 64 hex digits; keep it with the job, unpack_workspace asks for it
    """

    archive: Path
    digest: str
    size_bytes: int
    files: int
    warnings: tuple[str, ...] = ()


class _Entry(NamedTuple):
    name: str
    path: Path
    status: os.stat_result

    @property
    def size_bytes(self) -> int:
        """What it takes in a tar file, nearly: one block of 512 bytes, and its content in such blocks."""
        return 512 + (-(-self.status.st_size // 512) * 512 if stat.S_ISREG(self.status.st_mode) else 0)


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
    exclude_dirs:   names (or paths) below the root that are left out
    Symbolic links stay links and must stay inside; sockets, pipes and devices are left out with a warning.
    Raises ConfigError: a directory that isn't there, names that collide, a link that leads out, a file that
    changed meanwhile, more than bytes_max (names what is largest); SpaceError where the disk is full.
    """
    base = config.absolute().parent
    root = _directory(base, workspace_root or ".", "workspace_root")
    if not config.resolve().is_relative_to(root):
        raise ConfigError(f"workspace_root {root} does not hold {config}; name a directory above it")
    warnings: list[str] = []
    excluded = {os.path.normpath(each) for each in exclude_dirs}
    entries = list(_walk(root, "", excluded, warnings))
    top = {entry.name for entry in entries if "/" not in entry.name}
    for each in external_dirs:
        outside = _directory(base, each, "external_dirs")
        if outside.is_relative_to(root):
            warnings.append(f"external_dirs: {each} lies in the workspace's root already; it is packed once")
            continue
        if root.is_relative_to(outside):
            raise ConfigError(
                f"external_dirs: {outside} holds the workspace's root {root}; name a smaller one"
            )
        if outside.name in top:
            raise ConfigError(
                f"external_dirs: {outside} would be {outside.name} at the top of the workspace, which has one already; "
                "rename one of them, or exclude the other (exclude_dirs)"
            )
        top.add(outside.name)
        entries.append(_Entry(outside.name, outside, outside.stat()))
        entries += _walk(outside, f"{outside.name}/", set(), warnings)
    _check_size(entries, bytes_max)
    digest, size_bytes = _write(entries, archive)
    files = sum(stat.S_ISREG(entry.status.st_mode) for entry in entries)
    return PackedWorkspace(
        archive=archive, digest=digest, size_bytes=size_bytes, files=files, warnings=tuple(warnings)
    )


def unpack_workspace(archive: Path, digest: str, directory: Path) -> None:
    """Unpack archive as directory, which is replaced if it exists; whole when this returns.

    Raises DamagedError where the archive is not the one with that digest, or a path in it leads out of
    directory (nothing is written outside it); SpaceError where the disk is full.
    """
    draft = directory.with_name(f"{directory.name}.partial")
    doing = f"unpacking {archive} as {directory}"
    try:
        with _full_disk(doing), archive.open("rb") as file:
            if _digest_of(file) != digest:
                raise DamagedError(
                    f"{archive}: is damaged (its BLAKE3 is not the one of the push); push the job again"
                )
            file.seek(0)
            remove_tree(draft)
            draft.mkdir(parents=True, mode=0o755)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                _extract(tar, draft, archive)
            remove_tree(directory)
            draft.rename(directory)
    except tarfile.TarError as error:
        raise DamagedError(f"{doing}: {error}; push the job again") from None
    except OSError as error:
        raise DamagedError(f"{doing}: {error.filename}: {error.strerror}") from None
    finally:
        remove_tree(draft)


def _directory(base: Path, named: str, field: str) -> Path:
    path = base / named
    if not path.is_dir():
        found = "is not a directory" if path.exists() else "is not there"
        raise ConfigError(f"{field}: {path} {found}; paths are relative to the config's directory")
    return path.resolve()


def _walk(top: Path, prefix: str, excluded: set[str], warnings: list[str]) -> Iterator[_Entry]:
    """Yield what lies below top, parents first, in the order of names; follow no link."""
    pending = [top]
    while pending:
        place = pending.pop()
        try:
            found = sorted(os.scandir(place), key=lambda each: each.name)
        except OSError as error:
            raise ConfigError(f"packing the workspace: {place} can't be read: {error.strerror}") from None
        inner: list[Path] = []
        for each in found:
            path = Path(each.path)
            below = path.relative_to(top).as_posix()
            if below in excluded:
                continue
            status = each.stat(follow_symlinks=False)
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFLNK:
                _check_link(path, below, top)
            elif kind == stat.S_IFDIR:
                inner.append(path)
            elif kind != stat.S_IFREG:
                warnings.append(f"{path}: is neither file, directory nor link; left out of the workspace")
                continue
            yield _Entry(prefix + below, path, status)
        pending += reversed(inner)


def _check_link(path: Path, below: str, top: Path) -> None:
    target = os.readlink(path)
    lexical = os.path.normpath(os.path.join(os.path.dirname(below), target))
    if os.path.isabs(target) or lexical.startswith("..") or not path.resolve().is_relative_to(top):
        raise ConfigError(
            f"{path}: is a link to {target}, out of {top}, and would lead nowhere in the job; leave it out "
            "(exclude_dirs), or copy what it means"
        )


def _check_size(entries: Sequence[_Entry], bytes_max: int) -> None:
    total = sum(entry.size_bytes for entry in entries)
    if total <= bytes_max:
        return
    by_top: dict[str, int] = {}
    for entry in entries:
        top = entry.name.partition("/")[0]
        by_top[top] = by_top.get(top, 0) + entry.size_bytes
    largest = sorted(by_top.items(), key=lambda each: -each[1])[:_SHOWN_MAX]
    shown = ", ".join(f"{name} ({size:,})" for name, size in largest)
    raise ConfigError(
        f"the workspace has {total:,} bytes, {bytes_max:,} are allowed; the largest in it: {shown}. Leave out what the "
        "job doesn't need (exclude_dirs), and let data come as weights or by the training cache"
    )


class _Hashing:
    """A file that is hashed as it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hasher, self.size_bytes = file, blake3(), 0

    def write(self, data: bytes) -> int:
        self._hasher.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.size_bytes

    @property
    def digest(self) -> str:
        return str(self._hasher.hexdigest())


def _write(entries: Sequence[_Entry], archive: Path) -> tuple[str, int]:
    draft = archive.with_name(f"{archive.name}.partial")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with _full_disk(f"packing the workspace into {archive}"), draft.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            hashing = _Hashing(file)
            with tarfile.open(fileobj=hashing, mode="w:", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
                for entry in entries:
                    _add(tar, entry)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(archive)
        fd = os.open(archive.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise DamagedError(f"packing the workspace into {archive}: {error}") from None
    finally:
        draft.unlink(missing_ok=True)
    return hashing.digest, hashing.size_bytes


def _add(tar: tarfile.TarFile, entry: _Entry) -> None:
    member = tarfile.TarInfo(entry.name)
    member.mode, member.mtime = stat.S_IMODE(entry.status.st_mode), int(entry.status.st_mtime)
    if stat.S_ISDIR(entry.status.st_mode):
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    elif stat.S_ISLNK(entry.status.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(entry.path)
        tar.addfile(member)
    else:
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(
                f"packing the workspace: {entry.path} can't be read: {error.strerror}"
            ) from None
        with open(fd, "rb") as file:
            member.size = entry.status.st_size
            now = os.fstat(fd)
            if (now.st_ino, now.st_size) != (entry.status.st_ino, entry.status.st_size):
                raise _changed(entry)
            try:
                tar.addfile(member, file)
            except OSError as error:
                if error.errno is not None:
                    raise
                raise _changed(entry) from None  # tarfile's own, with no number: shorter by now


def _changed(entry: _Entry) -> ConfigError:
    return ConfigError(f"packing the workspace: {entry.path} changed meanwhile; push again once it is still")


def _extract(tar: tarfile.TarFile, directory: Path, archive: Path) -> None:
    links: set[PurePosixPath] = set()
    for member in tar:
        name = PurePosixPath(member.name)
        # Below a link nothing is ever written: what it points to at that moment may be anything.
        if name.is_absolute() or ".." in name.parts or links.intersection(name.parents):
            raise DamagedError(
                f"unpacking {archive}: {member.name!r} leads out of the workspace; push the job again"
            )
        if member.issym():
            links.add(name)
        if hasattr(tarfile, "data_filter"):
            tar.extract(member, directory, filter="data")
        else:  # Python before 3.11.4; the digest says that the archive is as it was packed
            tar.extract(member, directory)


def _digest_of(file: IO[bytes]) -> str:
    hasher = blake3()
    while piece := file.read(_PIECE_BYTES):
        hasher.update(piece)
    return str(hasher.hexdigest())


@contextmanager
def _full_disk(doing: str) -> Iterator[None]:
    """Turn a full disk into the error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(
                f"{doing}: {os.strerror(error.errno).lower()}; free some, then try again"
            ) from None
        raise
