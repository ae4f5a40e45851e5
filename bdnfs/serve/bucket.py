"""The object endpoint: GET and HEAD of `/<bucket>/<key>` as S3 answers them, and nothing else."""

import re

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bdnfs.core.errors import BdnfsError
from bdnfs.serve.grants import Grant, Grants
from bdnfs.serve.objects import Objects, Stored
from bdnfs.serve.refusal import Refusal, refusal_of
from bdnfs.serve.signature import Asked, signer

BUCKET = "bdnfs"
# What is handed to the kernel at once.
_PIECE_BYTES = 1 << 18
_KEY = re.compile(rf"/{BUCKET}/(bdn/([^/]+)/([^/]+)/(.+))")
_RELATIVE = re.compile(r"objects/b3/([0-9a-f]{2})/([0-9a-f]{2})/\1\2[0-9a-f]{60}")
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")
# SDKs name the call in the query.
_QUERIES = (b"", b"x-id=GetObject", b"x-id=HeadObject")

_UNWRITABLE = Refusal(
    405, "MethodNotAllowed", "objects can be read here, by GET and HEAD; nothing can be written"
)
_FORBIDDEN = Refusal(403, "AccessDenied", "these credentials don't open that")
_MISSING = Refusal(404, "NoSuchKey", "there is no such object")
_UNKNOWN_QUERY = Refusal(400, "InvalidRequest", "an object is asked for without a query")


class Bucket:
    """An ASGI application."""

    def __init__(self, objects: Objects, grants: Grants) -> None:
        self._objects = objects
        self._grants = grants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Asked(scope["method"], scope["raw_path"], scope["query_string"], scope["headers"])
        found = self._key(scope, asked)
        if isinstance(found, Refusal):
            await refuse(found, scope, receive, send)
            return
        try:
            async with self._objects.read(found) as stored:
                await _send(stored, scope, receive, send)
        except BdnfsError as error:
            scope["state"]["error"] = str(error)
            await refuse(refusal_of(error, found.rpartition("/")[2]), scope, receive, send)

    def _key(self, scope: Scope, asked: Asked) -> str | Refusal:
        """Return the key of the object that a request may read."""
        if asked.method not in ("GET", "HEAD"):
            return _UNWRITABLE
        grant = signer(asked, self._grants)
        if isinstance(grant, Refusal):
            return grant
        scope["state"]["tenant"] = grant.tenant
        key = _key_within(asked.path, grant)
        return key if isinstance(key, Refusal) or asked.query in _QUERIES else _UNKNOWN_QUERY


def _key_within(path: bytes, grant: Grant) -> str | Refusal:
    """Return the key that a path is, as sent: no key of an object has anything to decode."""
    match = _KEY.fullmatch(path.decode("latin-1"))
    if match is None:
        return _FORBIDDEN
    key, org, namespace, relative = match.groups()
    if org != grant.tenant or namespace not in grant.namespaces:
        return _FORBIDDEN
    if not relative.startswith("objects/") or ".." in relative or "%" in relative:
        return _FORBIDDEN
    return key if _RELATIVE.fullmatch(relative) else _MISSING


def asked_range(header: str | None, size: int) -> range | None:
    """Return the bytes of size that a Range header asks for; empty: none of them; None: all, without one.

    Several ranges, and what is none, get the whole object, as S3 does it.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix:
        return range(max(0, size - int(suffix)), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(size, int(last) + 1) if last else size)


async def _send(stored: Stored, scope: Scope, receive: Receive, send: Send) -> None:
    size = len(stored.data)
    part = asked_range(Headers(scope=scope).get("range"), size)
    if part is not None and not part:
        refused = Refusal(416, "InvalidRange", f"the object has {size} bytes")
        await refuse(refused, scope, receive, send, {"content-range": f"bytes */{size}"})
        return
    data = stored.data if part is None else stored.data[part.start : part.stop]
    headers = {
        "content-length": str(len(data)),
        "content-type": stored.content_type,
        "accept-ranges": "bytes",
        "etag": f'"{scope["raw_path"].decode().rpartition("/")[2]}"',
    }
    if part is not None:
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200 if part is None else 206, "headers": raw})
    if scope["method"] == "GET":
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def refuse(
    refusal: Refusal, scope: Scope, receive: Receive, send: Send, headers: dict[str, str] | None = None
) -> None:
    """Answer as S3 does where it refuses."""
    scope["state"]["refused"] = refusal.code
    answer = Response(
        refusal.xml(), refusal.status, {**refusal.headers, **(headers or {})}, "application/xml"
    )
    await answer(scope, receive, send)
