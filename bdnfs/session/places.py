"""Where sources may appear once links are followed: a spec's own check sees only what is written."""

import os
from collections.abc import Sequence

from bdnfs.cache.layout import Layout
from bdnfs.core.errors import MountError
from bdnfs.fs.mounts import resolve
from bdnfs.session.directories import is_below
from bdnfs.spec.locations import check_apart, check_location


def check_places(layout: Layout, locations: Sequence[str]) -> None:
    """Check where locations really lie.

    Raises MountError for a place in the cache, or around it: what appears there would be swept with the
    cache, or hide it. Raises SpecError for the kernel's own trees, and for two that are one place.
    """
    root = os.path.realpath(layout.root)
    places = [(resolve(location), location) for location in locations]
    for place, location in places:
        if is_below(place, root) or is_below(root, place):
            raise MountError(
                f"{location}: the cache directory {layout.root} is there, or it is in that; name another place"
            )
        check_location(place, location)
    check_apart(places, "links followed")
