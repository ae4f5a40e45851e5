"""A bucket's listing, page by page: as it comes, in bounded memory, and never without an end."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import obstore

from bdnfs.core.errors import UnavailableError, UpstreamError

if TYPE_CHECKING:
    from obstore import ObjectMeta

    from bdnfs.origins.object_client import ObjectStore

_PAGE_KEYS = 1000
# Many pages may be empty (deleted keys) before one is not.
_PAGE_STALLS = 40


# The rest of the listing, and a page of it; None after the last one.
Page = tuple[Iterator[Any], "Sequence[ObjectMeta] | None"]


class Ask(Protocol):
    """Does one request of a listing and maps its errors.

    again: whether it may be done once more, on other terms, where these were refused
    """

    def __call__(self, act: "Callable[[ObjectStore], Page]", *, again: bool) -> Page: ...


def objects_below(
    prefix: str | None, ask: Ask, doing: str, setting: str, stall_s: float
) -> Iterator["ObjectMeta"]:
    """Yield the object of every key below prefix, which ends at a `/`, in the order of their keys.

    setting: what errors say to check. Raises UnavailableError where a page does not come in time.
    """

    def first(store: "ObjectStore") -> Page:
        pages = iter(obstore.list(store, prefix, chunk_size=_PAGE_KEYS))
        return pages, _next_page(pages, doing, setting, _PAGE_STALLS * stall_s)

    def following(_: "ObjectStore") -> Page:
        return pages, _next_page(pages, doing, setting, _PAGE_STALLS * stall_s)

    pages, page = ask(first, again=True)
    first_key = page[0]["path"] if page else None
    begun = False
    while page is not None:
        for meta in page:
            if meta["path"] == first_key and begun:
                raise UpstreamError(
                    f"{doing}: the listing goes round in a circle, {first_key[:120]!r} came twice; check {setting}"
                )
            begun = True
            yield meta
        # What has failed is over for obstore: asked again it would say that the listing ends here.
        _, page = ask(following, again=False)


def _next_page(
    pages: "Iterator[Sequence[ObjectMeta]]", doing: str, setting: str, wait_s: float
) -> "Sequence[ObjectMeta] | None":
    """Return a page; UnavailableError if none comes in time: obstore goes on for as long as empty ones do."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(next(pages, None))
        except BaseException as error:
            found.append(error)

    asking = threading.Thread(target=ask, name="object listing", daemon=True)
    asking.start()
    asking.join(wait_s)
    if not found:
        raise UnavailableError(f"{doing}: the listing does not get on; try again, or check {setting}")
    if isinstance(found[0], BaseException):
        raise found[0]
    page: Sequence[ObjectMeta] | None = found[0]
    return page
