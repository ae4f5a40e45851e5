"""A bucket of as many objects as are wanted, listed in pages as S3, Azure and Google answer them."""

import json
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

PAGE_KEYS = 1000
_TIME = "2015-10-21T07:28:00.000Z"
# From numbers of keys, and the number of the first one of the next page, to an answer.
Render = Callable[[Iterable[int], int | None], str]


def key(number: int) -> str:
    """Return a key as datasets have them."""
    return f"data/part-{number // 1000:05d}/shard-{number:09d}.parquet"


def _s3(numbers: Iterable[int], following: int | None) -> str:
    objects = "".join(
        f"<Contents><Key>{key(number)}</Key><LastModified>{_TIME}</LastModified>"
        f"<ETag>&quot;{number:032x}&quot;</ETag><Size>1</Size></Contents>"
        for number in numbers
    )
    more = f"<NextContinuationToken>{following}</NextContinuationToken>" if following is not None else ""
    return f"<ListBucketResult>{objects}{more}</ListBucketResult>"


def _azure(numbers: Iterable[int], following: int | None) -> str:
    blobs = "".join(
        f"<Blob><Name>{key(number)}</Name><Properties><Last-Modified>Wed, 21 Oct 2015 07:28:00 GMT"
        f"</Last-Modified><Etag>0x{number:X}</Etag><Content-Length>1</Content-Length>"
        "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
        for number in numbers
    )
    more = f"<NextMarker>{following}</NextMarker>" if following is not None else "<NextMarker/>"
    return f"<EnumerationResults><Blobs>{blobs}</Blobs>{more}</EnumerationResults>"


def _gs(numbers: Iterable[int], following: int | None) -> str:
    items = [{"name": key(number), "size": "1", "generation": str(number + 1)} for number in numbers]
    return json.dumps({"items": items, **({} if following is None else {"nextPageToken": str(following)})})


_RENDER: dict[str, tuple[Render, str]] = {
    "s3": (_s3, "continuation-token"),
    "azure": (_azure, "marker"),
    "gs": (_gs, "pageToken"),
}


class ListingServer:
    """Listens on loopback from `with` on; every key of count objects begins with `data/`."""

    def __init__(self, kind: str, count: int) -> None:
        render, parameter = _RENDER[kind]
        self.pages = 0

        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._send(404, "")

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                if "/o/" in parts.path:
                    self._send(404, "")
                    return
                start = int(parse_qs(parts.query).get(parameter, ["0"])[0])
                stop = min(count, start + PAGE_KEYS)
                outer.pages += 1
                self._send(200, render(range(start, stop), stop if stop < count else None))

            def _send(self, status: int, body: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
