"""A version's tree holds together: no path in two roles, no link that leaves it."""

from collections.abc import Iterable, Mapping

from bdnfs.core.errors import IntegrityError, UpstreamError
from bdnfs.manifest.paths import check_tree

# Linux: fs/namei.c, MAXSYMLINKS
HOPS_MAX = 40


def check_contained(
    files: Iterable[str], directories: Iterable[str], links: Mapping[str, str], where: str
) -> None:
    """Raise IntegrityError where a path stands twice, or in two roles, or a link leads out of the tree.

    Each path has passed `manifest.paths.check_path` before.
    """
    paths = [*files, *links]
    try:
        check_tree(paths, where)
    except UpstreamError as error:
        raise IntegrityError(str(error)) from error
    both = set(paths) & set(directories)
    if both:
        raise IntegrityError(f"{where}: {min(both)!r} is both a directory and not one; nothing of it is used")
    for path, target in links.items():
        if not target or "\0" in target:
            raise IntegrityError(f"{where}: the link {path!r} leads to {target!r}; nothing of it is used")
        resolve_link(path, links, where)


def resolve_link(path: str, links: Mapping[str, str], where: str = "the manifest") -> str:
    """Follow a link as the kernel does, every link on its way included; return the path it leads to.

    Raises IntegrityError where it leaves the tree.
    """
    target = links[path]
    real = path.split("/")[:-1]
    todo = _components(target, real)
    hops = 1
    while todo:
        part = todo.pop()
        if part == "..":
            if not real:
                raise IntegrityError(
                    f"{where}: the link {path!r} to {target!r} leaves the tree; nothing of it is used"
                )
            real.pop()
            continue
        real.append(part)
        here = "/".join(real)
        if here in links:
            hops += 1
            if hops > HOPS_MAX:
                raise IntegrityError(
                    f"{where}: the link {path!r} leads through more than {HOPS_MAX} links, or a loop of them; "
                    "nothing of it is used"
                )
            real.pop()
            todo += _components(links[here], real)
    return "/".join(real)


def _components(target: str, real: list[str]) -> list[str]:
    """Return a target's components, last first; an absolute one starts from the tree's root again."""
    if target.startswith("/"):
        real.clear()
    return [part for part in reversed(target.split("/")) if part not in ("", ".")]
