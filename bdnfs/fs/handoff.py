"""The hand-off: the finished tree takes the place of the FUSE mount, under readers' feet.

The tree goes beneath the FUSE mount, then exactly that mount is taken off: at no moment does a
lookup find neither. Files open and mapped stay with the FUSE daemon until they are closed.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bdnfs.core.errors import MountError
from bdnfs.core.steps import reach
from bdnfs.fs.mounts import (
    BeneathUnsupportedError,
    bind,
    bind_beneath,
    detach,
    hold,
    make_private,
    mount_id_of,
    mount_table,
    move,
    top_mount,
)

# Mounts that others stacked on ours; more than a few are a mistake somewhere.
_FOREIGN_MAX = 8


def hand_off(location: str, fuse_fd: int, tree: str) -> bool:
    """Show tree at location in place of the FUSE mount that fuse_fd (see mounts.hold) is the root of.

    Return whether the FUSE mount is gone: on a kernel that can't mount beneath (before 6.5) the tree
    goes on top and the FUSE mount stays below it, with its daemon, until both are unmounted.
    What somebody else mounted on top stays on top. Raise MountError, with everything as it was, where
    the mounts can't be changed, or the FUSE mount is gone already.
    """
    ours = mount_id_of(fuse_fd)
    if all(mount.mount_id != ours for mount in mount_table()):
        raise MountError(f"handing off {location}: its FUSE mount is gone; nothing was changed, mount again")
    with _lifted(location, fuse_fd, ours):
        try:
            bind_beneath(tree, location)
        except BeneathUnsupportedError:
            bind(tree, location)
            return False
        reach("handoff:beneath")
        detach(fuse_fd)
    return True


@contextmanager
def _lifted(location: str, fuse_fd: int, ours: int) -> Iterator[None]:
    """Set aside what others mounted on top of mount ours, and put it back in the end.

    Nothing can be put beneath, or taken away below, a mount that something else covers.
    """
    with ExitStack() as stack:
        for _ in range(_FOREIGN_MAX):
            top = hold(location)
            stack.callback(os.close, top)
            if mount_id_of(top) == ours:
                break
            mount = top_mount(location)
            make_private(fuse_fd)  # nothing leaves a mount that shares its mounts
            aside = stack.enter_context(_scratch())
            try:
                move(top, aside)
            except MountError as error:
                found = f"{mount.fstype} ({mount.source})" if mount else "another mount"
                raise MountError(
                    f"handing off {location}: {found} lies on top and can't be set aside ({error}); "
                    "it goes on through FUSE until that one is unmounted"
                ) from None
            stack.callback(_put_back, top, location)
        else:
            raise MountError(
                f"handing off {location}: more than {_FOREIGN_MAX} mounts lie on top; unmount them"
            )
        yield


def _put_back(mount_fd: int, location: str) -> None:
    fd = hold(location)
    try:
        move(mount_fd, fd)
    finally:
        os.close(fd)


@contextmanager
def _scratch() -> Iterator[int]:
    """Yield a directory to move a mount to, on a mount of its own that spreads nothing."""
    import tempfile  # late: hardly ever needed

    with tempfile.TemporaryDirectory(prefix="bdnfs-") as directory:
        bind(directory, directory)
        fd = hold(directory)
        try:
            make_private(fd)
            yield fd
        finally:
            detach(fd)
            os.close(fd)
