"""Hubs whose listings no real one would give: of any length, made up as they are asked for."""

import json
import re
from collections.abc import Callable, Sequence

from tests.contract.raw import RawServer

COMMIT = "0123456789" * 4
PAGE = 1000
Entry = dict[str, object]


def entry(path: str, size: object = 7, number: int = 0) -> Entry:
    """Return a small file of a listing; each number is another content's."""
    return {"type": "file", "oid": f"{number:040x}", "size": size, "path": path}


def answer(body: object, headers: Sequence[str] = (), status: str = "200 OK") -> list[bytes]:
    """Return a whole answer. body: what becomes JSON, or bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers]
    return ["\r\n".join(lines).encode() + b"\r\n\r\n", content]


def listing_hub(
    page: Callable[[int], Sequence[Entry] | None], link: Callable[[int], str] | None = None
) -> RawServer:
    """Return a Hub with one repository. page: its listing's page by number, None after the last one.

    link: where the page after this number is said to be; by default where it is
    """

    def said(head: str) -> list[bytes]:
        target = head.split(" ")[1]
        if "/revision/" in target:
            return answer({"sha": COMMIT})
        if "/tree/" not in target:
            return answer(b"", status="404 Not Found")
        found = re.search("cursor=([0-9]+)", target)
        number = int(found[1]) if found else 0
        following = link(number) if link else f"{target.partition('?')[0]}?cursor={number + 1}"
        more = page(number + 1) is not None
        return answer(page(number), [f'Link: <{following}>; rel="next"'] if more else [])

    return RawServer(said)


def many(count: int) -> Callable[[int], Sequence[Entry] | None]:
    """Return pages of count files in directories of a thousand, each of another content, of one byte."""

    def page(number: int) -> Sequence[Entry] | None:
        start = number * PAGE
        if start >= count:
            return None
        return [
            entry(f"shards/{number:05d}/part-{index:09d}.parquet", 1, index)
            for index in range(start, min(count, start + PAGE))
        ]

    return page
