"""The Python API: the commands `mount`, `prefetch`, `plan` and `unmount` as functions, and what they read."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from bdnfs.cache.jobs import job_here as job_at
from bdnfs.cache.node import open_node_cache
from bdnfs.core.progress import View
from bdnfs.session.elsewhere import scanner
from bdnfs.session.options import Options
from bdnfs.session.parts import as_written, close, look, read_secrets
from bdnfs.session.planning import PlannedSource
from bdnfs.session.planning import plan as make_plan
from bdnfs.session.records import prepared_layout
from bdnfs.session.unmounting import clear_dead, unmount_at
from bdnfs.spec.config import Config, load_config
from bdnfs.spec.load import Placed, load_spec, parse_spec, place
from bdnfs.spec.lock import lock_path, read_lock
from bdnfs.spec.secret import read_secret as secret_named

__all__ = [
    "DeclaredSource",
    "Mount",
    "MountedSource",
    "PlannedSource",
    "declared",
    "job_here",
    "load_config",
    "mount",
    "plan",
    "prefetch",
    "read_secret",
    "unmount",
]


class DeclaredSource(msgspec.Struct, frozen=True):
    """One source of a spec, read and checked. secret: the name of the one it is read with, if it is."""

    source: str
    mount_location: str
    secret: str | None


class MountedSource(msgspec.Struct, frozen=True):
    """One source of a mount: what it was resolved to, and where it stands."""

    source: str
    revision: str
    path: str


class Mount:
    """What `mount` put up. As a context manager it unmounts on leaving, but not what stood before."""

    def __init__(
        self, sources: Sequence[MountedSource], config: Config, standing: Sequence[str] = ()
    ) -> None:
        self.sources = tuple(sources)
        self._config = config
        self._standing = frozenset(standing)

    @property
    def path(self) -> str:
        """Where the one source stands; ValueError where there are several."""
        (source,) = self.sources
        return source.path

    def wait(self, timeout_s: float | None = None) -> None:
        """Return once everything is whole; raise DeadlineError, or what keeps it from being whole."""
        from bdnfs.session.daemons import wait_for

        layout = prepared_layout(self._config.cache)
        wait_for(layout, [source.path for source in self.sources], timeout_s, _unseen)

    def unmount(self, *, force: bool = False) -> None:
        """Take everything away; MountError while it is in use, unless force."""
        for source in self.sources:
            unmount(source.path, config=self._config, force=force)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Files that are still open or mapped (a loaded model's are) live on.
        for source in self.sources:
            if source.path not in self._standing:
                unmount(source.path, config=self._config, force=True)


def mount(
    spec: str | os.PathLike[str],
    mountpoint: str | os.PathLike[str] | None = None,
    *,
    config: Config | None = None,
    root: str | None = None,
    lazy: bool = False,
    fill: bool = True,
    locked: bool = False,
    offline: bool = False,
    refresh: bool = False,
    timeout_s: float | None = None,
    hf_cache: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Mount:
    """Mount what spec (a file, or one source) declares, as `bdnfs mount` does; whole on return unless lazy.

    hf_cache: a directory that shows the hf sources as a Hugging Face cache does, while they are mounted.

    Raises the classes of bdnfs.core.errors; upstream's warnings come as `warnings.warn`.
    """
    from bdnfs.session.mounting import mount_and_view

    placed, options, loaded = _read(
        spec,
        mountpoint,
        config,
        root,
        environment,
        Options(locked=locked, offline=offline, refresh=refresh, lazy=lazy, fill=fill, timeout_s=timeout_s),
    )
    secrets = read_secrets(placed, loaded, _variables(environment))
    clear_dead(prepared_layout(loaded.cache))  # a stopped daemon may hold the index's lock
    with open_node_cache(loaded.cache, scanner(loaded.cache)) as cache:
        parts = look(cache, loaded, placed, options, secrets, warnings.warn)
        try:
            top = None if mountpoint is None else os.path.abspath(mountpoint)
            view = None if hf_cache is None else os.path.abspath(hf_cache)
            result = mount_and_view(cache, loaded, parts, options, secrets, top, view, _unseen)
        finally:
            close(parts)
    sources = [MountedSource(item.source, item.revision, item.location) for item in result.mounts]
    return Mount(sources, loaded, result.standing)


def prefetch(
    spec: str | os.PathLike[str],
    *,
    config: Config | None = None,
    offline: bool = False,
    refresh: bool = False,
    timeout_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Path]:
    """Bring everything spec declares into the node cache; return the trees, in the spec's order."""
    from bdnfs.session.filling import fill

    options = Options(offline=offline, refresh=refresh, timeout_s=timeout_s)
    placed, options, loaded = _read(spec, None, config, None, environment, options, unplaced=True)
    secrets = read_secrets(placed, loaded, _variables(environment))
    with open_node_cache(loaded.cache, scanner(loaded.cache)) as cache:
        parts = look(cache, loaded, placed, options, secrets, warnings.warn)
        try:
            parts = fill(cache, loaded, parts, options, secrets, _unseen)
            return [part.tree for part in parts if part.tree is not None]
        finally:
            close(parts)


def plan(
    spec: str | os.PathLike[str],
    *,
    config: Config | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[PlannedSource]:
    """Say what a mount of spec would fetch; see `bdnfs plan`."""
    placed, options, loaded = _read(spec, None, config, None, environment, Options(), unplaced=True)
    secrets = read_secrets(placed, loaded, _variables(environment))
    if not os.path.exists(os.path.join(loaded.cache.directory, "index.lmdb")):
        return make_plan(None, loaded, placed, options, secrets, warnings.warn)
    with open_node_cache(loaded.cache, scanner(loaded.cache)) as cache:
        return make_plan(cache, loaded, placed, options, secrets, warnings.warn)


def declared(
    spec: str | os.PathLike[str] | Mapping[str, object], *, where: str = "the spec"
) -> list[DeclaredSource]:
    """Return what spec (a file, one source, or the content of a file) declares; nothing is asked of anybody.

    Raises SpecError for whatever is wrong with it, also for locations that are equal or nested; `where`
    names content that is no file.
    """
    found = (
        parse_spec(spec, where) if isinstance(spec, Mapping) else load_spec(os.fspath(spec), cwd=os.getcwd())
    )
    return [DeclaredSource(each.source.text, each.mount_location, each.secret_name) for each in found.weights]


def read_secret(
    name: str, *, config: Config | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Return the secret called name as it is now: its file in the secrets directory, else the environment's.

    Raises CredentialsError saying where it looked, SpecError for a name that can be none.
    """
    variables = _variables(environment)
    loaded = config or load_config(None, variables)
    return secret_named(loaded.secrets, name, variables).value


@contextmanager
def job_here(*, config: Config | None = None) -> Iterator[None]:
    """Say, while the block runs, that a job runs on this node: a `bdnfs node` that serves from its cache yields to it.

    `bdnfs run` says so for its command. Raises CacheError where the cache directory can't be used.
    """
    loaded = config or load_config(None, os.environ)
    with job_at(prepared_layout(loaded.cache).root):
        yield


def unmount(location: str, *, config: Config | None = None, force: bool = False) -> list[str]:
    """Unmount everything of bdnfs at or below location; return the locations."""
    loaded = config or load_config(None, os.environ)
    return unmount_at(prepared_layout(loaded.cache), location, force=force)


def _read(
    spec: str | os.PathLike[str],
    mountpoint: str | os.PathLike[str] | None,
    config: Config | None,
    root: str | None,
    environment: Mapping[str, str] | None,
    options: Options,
    *,
    unplaced: bool = False,
) -> tuple[tuple[Placed, ...], Options, Config]:
    loaded = config or load_config(None, _variables(environment))
    point = None if mountpoint is None else os.fspath(mountpoint)
    found = load_spec(os.fspath(spec), point, cwd=os.getcwd())
    for line in found.warnings:
        warnings.warn(line, stacklevel=3)
    lock = None if found.path is None else read_lock(lock_path(found.path))
    options = msgspec.structs.replace(options, lock=lock, offline=options.offline or loaded.offline)
    placed = as_written(found) if unplaced else place(found, point, root, cwd=os.getcwd())
    return placed, options, loaded


def _variables(environment: Mapping[str, str] | None) -> Mapping[str, str]:
    return os.environ if environment is None else environment


def _unseen(view: View) -> None:
    for line in view.warnings:
        warnings.warn(line, stacklevel=2)
