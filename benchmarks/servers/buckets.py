"""Buckets on loopback, as much of S3 as `bdnfs mirror` and `rclone copy` ask for; whole files below a directory.

python -m benchmarks.servers.buckets ROOT [--until-eof]     each directory of ROOT is a bucket

As little as a store can cost, so that it is the programs that are measured: no signature is checked, nothing is
hashed (an ETag is not an MD5, as with any multipart upload of S3's), content goes out by sendfile, and the parts
of an upload are written where they belong.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from benchmarks.servers.faults import Faults
from benchmarks.servers.serving import Exchange, Ledger, Listener

_PIECE_BYTES = 1 << 20
_XML = {"Content-Type": "application/xml"}
_KEPT = ("content-type", "x-amz-meta-")


class _BucketExchange(Exchange):
    def do_GET(self) -> None:  # noqa: N802  # http.server's names
        self.target, self.query, self.quiet = urlsplit(self.path).path, {}, True
        try:
            self.listener.answer(self)
        except ConnectionError:
            self.close_connection = True

    do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815


class _Upload:
    """A multipart upload: part 1 says how long all parts but the last are, and so where each belongs."""

    def __init__(self, draft: Path, headers: dict[str, str]) -> None:
        self.draft, self.headers = draft, headers
        self._part_bytes = 0
        self._known = threading.Condition()

    def place(self, number: int, size: int) -> int:
        """Return where part number begins."""
        with self._known:
            if number == 1:
                self._part_bytes = size
                self._known.notify_all()
            elif not self._known.wait_for(lambda: self._part_bytes, 60):
                raise ConnectionAbortedError("part 1 did not begin within a minute")
            return (number - 1) * self._part_bytes


class BucketServer:
    """Serves ROOT/<bucket>/<key>. What a key's PUT said of its type is known for as long as this runs."""

    def __init__(self, root: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        self._root = root
        self._drafts = Path(tempfile.mkdtemp(prefix=".drafts.", dir=root))
        self._lock = threading.Lock()
        self._headers: dict[Path, dict[str, str]] = {}
        self._uploads: dict[str, _Upload] = {}
        self._ledger = Ledger()
        self._received_bytes = 0
        self._listener = Listener((host, port), self._answer, self._ledger, Faults())
        self._listener.RequestHandlerClass = _BucketExchange
        self.url = self._listener.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        shutil.rmtree(self._drafts, ignore_errors=True)

    @property
    def stats(self) -> dict[str, float]:
        """What went out and came in of objects, in bytes, and what this process has worked, in seconds."""
        with self._lock:
            received = self._received_bytes
        return {
            "bytes_sent": self._ledger.bytes_sent,
            "bytes_received": received,
            "cpu_s": time.process_time(),
        }

    def _answer(self, exchange: Exchange) -> None:
        if exchange.target == "/_stats":
            return exchange.respond(200, json.dumps(self.stats).encode())
        parts = urlsplit(exchange.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if not bucket or ".." in (bucket, *key.split("/")):
            return _refuse(exchange, 400, "InvalidRequest")
        if not key:
            return self._bucket(exchange, bucket, query)
        path = self._root / bucket / key
        if exchange.command in ("GET", "HEAD"):
            return self._get(exchange, path)
        if query.get("uploadId", "") not in ("", *self._uploads):
            return _refuse(exchange, 404, "NoSuchUpload")
        if exchange.command == "PUT" and "uploadId" in query:
            return self._part(exchange, query)
        if exchange.command == "PUT" and "x-amz-copy-source" not in exchange.headers:
            return self._put(exchange, path)
        if exchange.command == "POST" and "uploads" in query:
            return self._begin_upload(exchange, bucket, key)
        if exchange.command == "POST" and "uploadId" in query:
            return self._end_upload(exchange, path, query)
        if exchange.command == "DELETE":
            path.unlink(missing_ok=True)
            return exchange.respond(204)
        return _refuse(exchange, 501, "NotImplemented")

    # ---- buckets --------------------------------------------------------------------------------

    def _bucket(self, exchange: Exchange, bucket: str, query: dict[str, str]) -> None:
        place = self._root / bucket
        if exchange.command == "PUT":
            place.mkdir(exist_ok=True)
            return exchange.respond(200)
        if exchange.command == "DELETE":  # unlike S3's, with all that is in it
            shutil.rmtree(place, ignore_errors=True)
            return exchange.respond(204)
        if not place.is_dir():
            return _refuse(exchange, 404, "NoSuchBucket")
        if exchange.command not in ("GET", "HEAD"):
            return _refuse(exchange, 501, "NotImplemented")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        shown = quote if query.get("encoding-type") == "url" else escape
        entries, folded = [], set()
        for key, status in _files(place):
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folded.add(prefix + head + delimiter)
                continue
            changed = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(status.st_mtime))
            entries.append(
                f"<Contents><Key>{shown(key)}</Key><LastModified>{changed}</LastModified>"
                f"<ETag>{escape(_etag(status))}</ETag><Size>{status.st_size}</Size></Contents>"
            )
        entries += [
            f"<CommonPrefixes><Prefix>{shown(each)}</Prefix></CommonPrefixes>" for each in sorted(folded)
        ]
        encoding = "<EncodingType>url</EncodingType>" if shown is quote else ""
        body = (
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{shown(prefix)}</Prefix>{encoding}"
            f"<KeyCount>{len(entries)}</KeyCount><IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"
        )
        return exchange.respond(200, body.encode(), _XML)

    # ---- objects --------------------------------------------------------------------------------

    def _get(self, exchange: Exchange, path: Path) -> None:
        if not path.is_file():
            return _refuse(exchange, 404, "NoSuchKey")
        status = path.stat()
        changed = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(status.st_mtime))
        kept = self._headers.get(path, {})
        return exchange.respond_file(path, _etag(status), {"Last-Modified": changed, **kept})

    def _put(self, exchange: Exchange, path: Path) -> None:
        draft = self._draft()
        self._receive(exchange, draft, 0)
        if self._publish(exchange, draft, path, _kept(exchange)):
            exchange.respond(200, b"", {"ETag": _etag(path.stat())})
        else:
            exchange.respond(412, _error("PreconditionFailed"), _XML)

    def _publish(self, exchange: Exchange, draft: Path, path: Path, headers: dict[str, str]) -> bool:
        with self._lock:
            found = _etag(path.stat()) if path.exists() else None
            wanted, unwanted = exchange.headers.get("If-Match"), exchange.headers.get("If-None-Match")
            if (wanted and wanted != found) or (unwanted == "*" and found):
                draft.unlink()
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(path)
            self._headers[path] = headers
            return True

    def _receive(self, exchange: Exchange, draft: Path, start: int) -> None:
        left = int(exchange.headers["Content-Length"])
        buffer = memoryview(bytearray(min(left, _PIECE_BYTES)))
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while left:
                count = exchange.rfile.readinto(buffer[:left])
                if not count:
                    raise ConnectionAbortedError("the client went away")
                os.pwrite(fd, buffer[:count], start)
                start, left = start + count, left - count
                with self._lock:
                    self._received_bytes += count
        finally:
            os.close(fd)

    def _draft(self) -> Path:
        return self._drafts / secrets.token_hex(16)

    # ---- uploads in parts -----------------------------------------------------------------------

    def _begin_upload(self, exchange: Exchange, bucket: str, key: str) -> None:
        upload = _Upload(self._draft(), _kept(exchange))
        self._uploads[upload.draft.name] = upload
        body = (
            f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{escape(key)}</Key>"
            f"<UploadId>{upload.draft.name}</UploadId></InitiateMultipartUploadResult>"
        )
        exchange.respond(200, body.encode(), _XML)

    def _part(self, exchange: Exchange, query: dict[str, str]) -> None:
        upload = self._uploads[query["uploadId"]]
        number = int(query["partNumber"])
        self._receive(exchange, upload.draft, upload.place(number, int(exchange.headers["Content-Length"])))
        exchange.respond(200, b"", {"ETag": f'"{number:x}-1"'})

    def _end_upload(self, exchange: Exchange, path: Path, query: dict[str, str]) -> None:
        exchange.rfile.read(int(exchange.headers["Content-Length"]))
        upload = self._uploads.pop(query["uploadId"])
        self._publish(exchange, upload.draft, path, upload.headers)
        etag = f"<ETag>{escape(_etag(path.stat()))}</ETag>"
        body = f"<CompleteMultipartUploadResult>{etag}</CompleteMultipartUploadResult>"
        exchange.respond(200, body.encode(), _XML)


def _files(place: Path) -> Iterator[tuple[str, os.stat_result]]:
    found = []
    for directory, _, names in os.walk(place, followlinks=True):
        found += [os.path.join(directory, name) for name in names]
    for path in sorted(found):
        yield os.path.relpath(path, place), os.stat(path)


def _etag(status: os.stat_result) -> str:
    return f'"{status.st_ino:x}{status.st_mtime_ns:x}-1"'


def _kept(exchange: Exchange) -> dict[str, str]:
    return {name: value for name, value in exchange.headers.items() if name.lower().startswith(_KEPT)}


def _refuse(exchange: Exchange, status: int, code: str) -> None:
    if exchange.headers.get("Content-Length", "0") != "0":
        exchange.close_connection = True  # its body was not read
    exchange.respond(status, _error(code), _XML)


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


def _set_at_eof(ended: threading.Event) -> None:
    sys.stdin.buffer.read()
    ended.set()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers.buckets", description=__doc__)
    parser.add_argument("root", type=Path, help="holds <bucket>/<key>")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--fresh", action="store_true", help="begin with an empty directory, gone at the end")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    options = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    if options.until_eof:
        threading.Thread(target=_set_at_eof, args=(ended,), daemon=True).start()
    root = (
        Path(tempfile.mkdtemp(prefix="bdnfs-benchmark.", dir=options.root)) if options.fresh else options.root
    )
    try:
        with BucketServer(root, options.host) as server:
            print(server.url, flush=True)
            ended.wait()
    finally:
        if options.fresh:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
