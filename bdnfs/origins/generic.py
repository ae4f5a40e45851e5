"""Every other store that fsspec opens. Its deadlines are the implementation's own: fsspec has none."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bdnfs.core.errors import (
    BdnfsError,
    ChangedError,
    CredentialsError,
    NotFoundError,
    SpecError,
    UnavailableError,
    UpstreamError,
)
from bdnfs.manifest.model import FileEntry
from bdnfs.manifest.sizes import check_size
from bdnfs.origins.instances import Instances

_PIECE_BYTES = 1 << 20
# What implementations call the things that change with a file's content, in the order of their worth.
_VERSIONS = (
    "etag",
    "e_tag",
    "checksum",
    "md5hash",
    "content_md5",
    "generation",
    "versionid",
    "hex",
    "sha",
    "oid",
)
_TIMES = ("mtime", "lastmodified", "last_modified", "modified", "modify", "updated", "modificationtime")
_REFUSED = (
    "AuthenticationException",
    "BadAuthenticationType",
    "PasswordRequiredException",
    "BadHostKeyException",
)


class GenericOrigin:
    """What url, of any fsspec protocol, names: a directory or a file.

    options:         keyword arguments of the filesystem
    connections_max: filesystem instances; one is used by one thread at a time unless it is async inside
    wait_s:          how long a thread waits for a free one
    """

    def __init__(self, url: str, options: Mapping[str, Any], connections_max: int, wait_s: float) -> None:
        self.name = url
        self._url = url
        self._options = dict(options)
        self._instances = Instances(self._connect, self._disconnect, connections_max, wait_s)

    def resolve(self, revision: str | None) -> None:
        """There are no revisions that all implementations share."""

    def list(self, revision: str | None) -> Iterator[FileEntry]:
        """Yield every file below the URL, or the one it names."""
        doing = f"listing {self.name}"
        with self._filesystem(doing) as (fs, root):
            found = _info(fs, root)
            if found["type"] == "file":
                yield self._entry(doing, root.rstrip("/").rpartition("/")[2], found)
                return
            for directory, _, files in fs.walk(root, detail=True, on_error="raise"):
                below = directory.rstrip("/").removeprefix(root.rstrip("/")).strip("/")
                for name, info in files.items():
                    path = f"{below}/{name}" if below else name
                    target = self._followed(fs, doing, root, path, info)
                    if target["type"] == "file":
                        yield self._entry(doing, path, target)

    def read(self, revision: str | None, entry: FileEntry, start: int, into: memoryview) -> None:
        """Fill `into` from byte start of the file, looking before and after whether it is still the same."""
        if not into:
            return
        doing = f"reading {entry.path} of {self.name}"
        with self._filesystem(doing) as (fs, root):
            path = self._path(fs, root, entry)
            self._fill(fs, doing, path, entry, start, into)

    def stream(self, revision: str | None, entry: FileEntry) -> Iterator[memoryview]:
        """Yield the whole file from one handle."""
        if not entry.size:
            return
        doing = f"reading {entry.path} of {self.name}"
        got = 0
        with self._filesystem(doing) as (fs, root):
            path = self._path(fs, root, entry)
            check(doing, entry, _info(fs, path))
            with fs.open(path, "rb") as handle:
                while piece := handle.read(_PIECE_BYTES):
                    got += len(piece)
                    yield memoryview(piece)
            check(doing, entry, {**_info(fs, path), "size": got})

    def close(self) -> None:
        self._instances.close()

    # ---- what an implementation may know better --------------------------------------------------

    def _connect(self) -> Any:
        from fsspec.core import url_to_fs

        return url_to_fs(self._url, skip_instance_cache=True, **self._options)

    def _disconnect(self, instance: Any) -> None:
        """Let an instance go; fsspec has no way to close one."""

    def _fill(self, fs: Any, doing: str, path: str, entry: FileEntry, start: int, into: memoryview) -> None:
        check(doing, entry, _info(fs, path))
        found = fs.cat_file(path, start=start, end=start + len(into))
        if len(found) != len(into):
            raise UnavailableError(f"{doing}: {len(found)} of {len(into)} bytes came; try again")
        into[:] = found
        check(doing, entry, _info(fs, path))

    def _target(self, fs: Any, path: str) -> str | None:
        """Return the path a symlink leads to in the end, None where that can't be known."""
        return None

    # ---- the rest --------------------------------------------------------------------------------

    def _followed(
        self, fs: Any, doing: str, root: str, path: str, info: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if info["type"] != "link" and not info.get("islink"):
            return info
        target, home = self._target(fs, info["name"]), self._target(fs, root)
        if target is None or home is None or not f"{target}/".startswith(f"{home.rstrip('/')}/"):
            raise UpstreamError(
                f"{doing}: the symlink {path!r} leads out of the source, or nobody knows where to, "
                "and is not followed; "
                "remove it, or name a directory that holds both as the source"
            )
        found: Mapping[str, Any] = fs.info(target)
        if found["type"] != "file":
            raise UpstreamError(
                f"{doing}: the symlink {path!r} leads to a directory, which is not followed; remove it"
            )
        return found

    def _path(self, fs: Any, root: str, entry: FileEntry) -> str:
        if root.rstrip("/").rpartition("/")[2] == entry.path and fs.info(root)["type"] == "file":
            return root
        return f"{root.rstrip('/')}/{entry.path}"

    def _entry(self, doing: str, path: str, info: Mapping[str, Any]) -> FileEntry:
        size = info.get("size")
        if not isinstance(size, int):
            raise UpstreamError(
                f"{doing}: the store does not say how long {path!r} is; leave it out, or mount another"
            )
        check_size(size, path, doing)
        version = identity(info)
        return FileEntry(path=path, size=size, identity=version, ranged=bool(version))

    @contextmanager
    def _filesystem(self, doing: str) -> Iterator[tuple[Any, str]]:
        try:
            with self._instances.one(doing) as (fs, root):
                yield fs, root
        except BdnfsError:
            raise
        except Exception as error:
            raise _error(doing, error) from None


def _info(fs: Any, path: str) -> Mapping[str, Any]:
    # Listings are remembered by some implementations, and would hide a change.
    fs.invalidate_cache()
    info: Mapping[str, Any] = fs.info(path)
    return info


def identity(info: Mapping[str, Any]) -> str:
    """Return what changes with the file, as far as the store tells; empty if it tells nothing."""
    known = {key.lower().replace("-", "_"): value for key, value in info.items() if value not in (None, "")}
    version = next((str(known[name]) for name in _VERSIONS if name in known), "")
    time = next((str(known[name]) for name in _TIMES if name in known), "")
    return " ".join(filter(None, (version, time)))


def check(doing: str, entry: FileEntry, info: Mapping[str, Any]) -> None:
    """Raise ChangedError unless info is about the entry's version."""
    if info.get("size") != entry.size or identity(info) != entry.identity:
        raise ChangedError(
            f"{doing}: the file is another one now (size, version or time differ from the snapshot's); "
            "it changed upstream. Mount it again for the new version"
        )


def needs(scheme: str) -> str | None:
    """Return what has to be installed for fsspec to open scheme, or None if it can; SpecError if "
    "it never can."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(scheme)
    if known is None:
        raise SpecError(
            f"source {scheme}://…: fsspec knows no such protocol; see its list of implementations"
        )
    try:
        importlib.import_module(known["class"].rpartition(".")[0])
    except ImportError:
        return str(known.get("err") or f"the package that brings {known['class']}")
    return None


def _error(doing: str, error: Exception) -> BdnfsError:
    """Return what a foreign error means; only its kind and errno's text are passed on."""
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(f"{doing}: there is no such file or directory; check the source's spelling")
    if isinstance(error, PermissionError) or kind in _REFUSED:
        return CredentialsError(
            f"{doing}: the store refuses access ({kind}); check user, key or auth_secret_name"
        )
    if isinstance(error, TypeError | NotImplementedError | AttributeError):
        return UpstreamError(
            f"{doing}: fsspec's implementation can't do it ({kind}); check the URL and its options"
        )
    if isinstance(error, OSError | EOFError | TimeoutError) or kind in (
        "SSHException",
        "ChannelException",
        "SFTPError",
    ):
        said = getattr(error, "strerror", None) or kind
        return UnavailableError(f"{doing}: the store could not be reached or broke off ({said}); try again")
    return UpstreamError(f"{doing}: the store failed ({kind}); check the source and its credentials")
