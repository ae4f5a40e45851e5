"""A Hub-cache-shaped view of mounted `hf://` sources: what huggingface_hub finds without a network.

    DIR/models--org--name/refs/main             the commit
    DIR/models--org--name/snapshots/<commit>    -> the mount_location

Beside the records, `mounts/<hash of the location>.hub` says what was made for which location. It goes
when the location is mounted nowhere any more, as the directories made to mount on do, and with the
same locks (directories.py).
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from bdnfs.cache.layout import Layout, read_file
from bdnfs.core.errors import UNREADABLE, MountError, SpecError
from bdnfs.core.units import short
from bdnfs.session.records import AbsolutePath, location_file
from bdnfs.spec.fields import shown
from bdnfs.spec.source import Source

if TYPE_CHECKING:
    from bdnfs.session.parts import Part

# What from_pretrained("org/name") asks for.
_MAIN = "main"

# A record is a file: what a damaged one holds must not become a path to somewhere else.
Folder = Annotated[str, msgspec.Meta(pattern=r"^(models|datasets)--[^/\0]+$")]
Name = Annotated[str, msgspec.Meta(pattern=r"^(?!.*\.\.)[^/\0][^\0]*$")]
Commit = Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z]+$")]


class View(msgspec.Struct, frozen=True):
    """One source in one view.

    directory: the view, as HF_HUB_CACHE names it;  made: directories made for it, parents first
    folder:    the repository's in it
    names:     what the commit is called: the branch or tag of the source, and main
    """

    directory: AbsolutePath
    folder: Folder
    names: tuple[Name, ...]
    commit: Commit
    made: tuple[AbsolutePath, ...]

    @property
    def repository(self) -> Path:
        return Path(self.directory, self.folder)

    @property
    def link(self) -> Path:
        """What names the snapshot, and points to the mount_location."""
        return self.repository / "snapshots" / self.commit


class Views(msgspec.Struct, frozen=True):
    """The views of a location, and the PID namespaces that use it."""

    location: AbsolutePath
    views: tuple[View, ...]
    users: tuple[str, ...] = ()


def folder_of(source: Source) -> str:
    """Return the name of a repository's directory in a Hub cache."""
    return "--".join((f"{source.kind}s", *source.rest.split("/")))


def plan_views(parts: "Iterable[Part]", directory: str) -> dict[str, View]:
    """Return what is to be made in directory for the hf sources of parts, by location.

    Raises SpecError where there is none, or where two sources are the same repository at one revision.
    """
    hub = [part for part in parts if part.weights.source.scheme == "hf"]
    if not hub:
        raise SpecError("--hf-cache shows hf:// sources, and the spec declares none; leave it away")
    declared = {(folder_of(part.weights.source), part.weights.source.revision or _MAIN) for part in hub}
    found: dict[str, View] = {}
    for part in hub:
        source = part.weights.source
        assert part.revision is not None  # a Hub's revision is known before a mount
        folder, name = folder_of(source), source.revision or _MAIN
        others = [view for view in found.values() if view.folder == folder]
        if any(view.commit == part.revision for view in others):
            raise SpecError(
                f"--hf-cache: {source.key} is declared twice at one revision ({short(part.revision)}), and a Hub cache "
                "has one place for it; keep one of the two"
            )
        names = [] if source.pinned else [name]
        if (folder, _MAIN) not in declared and not any(_MAIN in view.names for view in others):
            names.append(_MAIN)  # the job's idea of this repository, whatever branch that is
        found[part.placed.location] = View(directory, folder, tuple(names), part.revision, ())
    return found


def check_free(layout: Layout, views: Mapping[str, View]) -> None:
    """Raise MountError where a view can't be made: something is there that is none of ours, or another location's."""
    ours = {str(view.repository) for _, known in _known(layout) for view in known.views}
    for location, view in views.items():
        where = f"--hf-cache {shown(view.directory)}"
        if os.path.lexists(view.directory) and not os.path.isdir(view.directory):
            raise MountError(f"{where}: is there already and is no directory")
        if str(view.repository) not in ours and os.path.lexists(view.repository):
            raise MountError(f"{where}: holds {view.folder} already, from elsewhere; name an empty directory")
        link = view.link
        if os.path.lexists(link) and not (os.path.islink(link) and os.readlink(link) == location):
            raise MountError(
                f"{where}: shows this commit of {view.folder} at another place; name another directory"
            )
        for ref in (view.repository / "refs" / name for name in view.names):
            if ref.exists() and ref.read_text() != view.commit:
                raise MountError(
                    f"{where}: shows {view.folder} at another commit, which is mounted too; name another directory"
                )


def make_view(layout: Layout, location: str, view: View, user: str) -> None:
    """Make a view and remember it, the memory first.

    The caller holds the registry and the location's lock, and has found that nothing is in the way.
    """
    made = tuple(_missing(view.directory))
    before = next((known for _, known in _known(layout) if known.location == location), Views(location, ()))
    kept = tuple(each for each in before.views if each.repository != view.repository)
    mine = next((each for each in before.views if each.repository == view.repository), view)
    view = msgspec.structs.replace(view, made=made or mine.made)
    _write(layout, Views(location, (*kept, view), tuple(sorted({*before.users, user}))))
    try:
        for directory in ("blobs", "refs", "snapshots"):
            (view.repository / directory).mkdir(parents=True, exist_ok=True)
        for name in view.names:
            ref = view.repository / "refs" / name
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(view.commit)
        if not os.path.lexists(view.link):
            view.link.symlink_to(location)
    except OSError as error:
        raise MountError(f"--hf-cache: making {view.repository}: {error.strerror}") from None


def take_back_views(
    layout: Layout,
    location: str,
    is_shown: Callable[[str], bool],
    others: Callable[[tuple[str, ...]], set[str]],
) -> None:
    """Remove the views of what was mounted at or below location and shows nowhere now.

    others: those of the users that may have a mount which can't be seen from here. The caller holds the
    registry.
    """
    for path, known in list(_known(layout)):
        inside = known.location == location or known.location.startswith(location.rstrip("/") + "/")
        if not inside or is_shown(known.location):
            continue
        left = others(known.users)
        if left:
            _write(layout, Views(known.location, known.views, tuple(sorted(left))))
            continue
        for view in known.views:
            _remove(view, known.location)
        path.unlink(missing_ok=True)
        for view in known.views:
            _bequeath(layout, view)


def _bequeath(layout: Layout, gone: View) -> None:
    """Leave the directories that were made for a view, and still hold others, to one of those."""
    left = tuple(each for each in gone.made if os.path.isdir(each))
    for _, known in list(_known(layout)) if left else ():
        if any(view.directory == gone.directory for view in known.views):
            made = {
                view: tuple(sorted({*left, *view.made}))
                for view in known.views
                if view.directory == gone.directory
            }
            heirs = [msgspec.structs.replace(view, made=made.get(view, view.made)) for view in known.views]
            _write(layout, Views(known.location, tuple(heirs), known.users))
            return


def viewed(layout: Layout) -> list[str]:
    """Return the locations that have views."""
    return [known.location for _, known in _known(layout)]


def _remove(view: View, location: str) -> None:
    """Remove exactly what make_view made; what others have put beside it stays."""
    with contextlib.suppress(OSError):
        if os.readlink(view.link) == location:
            view.link.unlink()
    directories = [view.repository / "refs", view.repository / "snapshots", view.repository / "blobs"]
    for name in view.names:
        ref = view.repository / "refs" / name
        with contextlib.suppress(OSError):
            if ref.read_text() == view.commit:
                ref.unlink()
        directories = [*(each for each in ref.parents if each.is_relative_to(directories[-3])), *directories]
    # huggingface_hub keeps its locks, and notes of what is not there, beside them.
    for each in [*directories, view.repository, *map(Path, reversed(view.made))]:
        with contextlib.suppress(OSError):
            each.rmdir()


def _missing(directory: str) -> list[str]:
    parts = Path(directory)
    return [str(each) for each in reversed([parts, *parts.parents]) if not os.path.lexists(each)]


def _known(layout: Layout) -> Iterator[tuple[Path, Views]]:
    for path in sorted(layout.mounts.glob("*.hub")):
        with contextlib.suppress(OSError, *UNREADABLE):
            yield path, msgspec.json.decode(read_file(path), type=Views)


def _write(layout: Layout, known: Views) -> None:
    path = location_file(layout, known.location, "hub")
    draft = layout.mounts / ".hub"  # the registry's lock is held: nobody else writes one
    draft.unlink(missing_ok=True)  # what was planted there is not written through
    draft.write_bytes(msgspec.json.encode(known))
    draft.rename(path)
