"""Repositories as the Hub keeps them: branches and tags that name immutable commits of files."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What the Hub's usual .gitattributes and size limit send to LFS.
LFS_SUFFIXES = frozenset(
    (".safetensors", ".bin", ".gguf", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".parquet", ".pt", ".pth")
)
LFS_FROM_BYTES = 10 << 20

Entry = dict[str, Any]
Files = Mapping[str, bytes | str | Path] | Path


@dataclass(frozen=True)
class FileVersion:
    """One version of one file: its object on disk, its git blob id, its sha256 if it is in LFS."""

    path: str
    size: int
    oid: str
    sha256: str | None
    object: Path

    @property
    def entry(self) -> Entry:
        """The file as the tree API lists it."""
        entry: Entry = {"type": "file", "oid": self.oid, "size": self.size, "path": self.path}
        if self.sha256 is not None:
            pointer_bytes = len(_pointer(self.sha256, self.size))
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": pointer_bytes}
        return entry


@dataclass(frozen=True)
class Commit:
    """An immutable listing; `tree`, where given, is what the API says instead of the truth."""

    sha: str
    files: Mapping[str, FileVersion]
    tree: Sequence[Entry] | None = None

    def entries(self, under: str, *, recursive: bool) -> list[Entry]:
        """Return the tree API's entries below the directory `under` ("" is the root), in path order."""
        if self.tree is not None:
            return list(self.tree)
        prefix = f"{under}/" if under else ""
        found: dict[str, Entry] = {}
        for path, file in self.files.items():
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                directory = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(f"{self.sha}/{directory}".encode()).hexdigest()
                found.setdefault(directory, {"type": "directory", "oid": oid, "size": 0, "path": directory})
            if recursive or len(parts) == 1:
                found[path] = file.entry
        return [found[path] for path in sorted(found)]


@dataclass
class Repository:
    """One repository; set `private` or `gated` ("auto", "manual") to restrict it."""

    kind: str
    name: str
    private: bool = False
    gated: str | bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a tag, a full sha or a ref names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.commits.get(self.branches.get(name) or self.tags.get(name) or revision)


class Repositories:
    """All repositories of one Hub, with their objects in a directory.

    Files of a committed directory are hardlinked, so a big model costs nothing; replace such
    files, don't rewrite them in place, or old commits change.
    """

    def __init__(self, objects: Path) -> None:
        self._objects = objects
        self._repositories: dict[tuple[str, str], Repository] = {}
        objects.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, kind: str = "models") -> Repository | None:
        return self._repositories.get((kind, name))

    def object(self, sha256: str) -> Path:
        """Return where content of this digest is kept, or would be."""
        return self._objects / sha256

    def commit(
        self, name: str, files: Files, branch: str, kind: str, tree: Sequence[Entry] | None = None
    ) -> str:
        """Make files the content of branch; return the new commit's sha. Nothing is carried over."""
        repository = self._repositories.setdefault((kind, name), Repository(kind, name))
        versions = {path: self._store(path, content) for path, content in sorted(_walk(files))}
        parent = repository.branches.get(branch, "")
        said = (kind, name, parent, [(path, file.oid) for path, file in versions.items()], tree)
        sha = hashlib.sha1(repr(said).encode()).hexdigest()
        repository.commits[sha] = Commit(sha, versions, tree)
        repository.branches[branch] = sha
        return sha

    def _store(self, path: str, content: bytes | str | Path) -> FileVersion:
        if isinstance(content, Path):
            with content.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            size = content.stat().st_size
        else:
            content = content.encode() if isinstance(content, str) else content
            sha256 = hashlib.sha256(content).hexdigest()
            size = len(content)
        kept = self.object(sha256)
        if not kept.exists():
            self._keep(content, kept)
        if size >= LFS_FROM_BYTES or Path(path).suffix in LFS_SUFFIXES:
            return FileVersion(path, size, _git_oid(_pointer(sha256, size)), sha256, kept)
        return FileVersion(path, size, _git_oid(kept.read_bytes()), None, kept)

    def _keep(self, content: bytes | Path, kept: Path) -> None:
        if isinstance(content, Path):
            try:
                return os.link(content, kept)
            except OSError:  # another device, or a filesystem without hardlinks
                pass
        with tempfile.NamedTemporaryFile(dir=self._objects, delete=False) as stream:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, stream, 1 << 20)
            else:
                stream.write(content)
        return os.replace(stream.name, kept)


def _walk(files: Files) -> Iterator[tuple[str, bytes | str | Path]]:
    if isinstance(files, Path):
        yield from ((path.relative_to(files).as_posix(), path) for path in files.rglob("*") if path.is_file())
    else:
        yield from files.items()


# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
