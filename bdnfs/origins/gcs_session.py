"""gcsfs's session with Google Cloud Storage: its URLs and connections, but requests of our own."""

import io
from collections.abc import Mapping
from typing import Any

import aiohttp
from fsspec.asyn import get_loop
from gcsfs.core import GCSFileSystem

from bdnfs.origins.http import CONNECT_TIMEOUT_S

PIECE_BYTES = 256 << 10
# Answers that are no content: a page of a thousand objects has some hundred KiB.
_ANSWER_BYTES_MAX = 32 << 20


class GcsSession(GCSFileSystem):  # type: ignore[misc]
    """For coroutines of fsspec's event loop, which has a thread of its own.

    gcsfs's own requests have neither deadlines nor a say in how often they are made, and it looks for
    credentials by itself.
    """

    _session: Any

    def __init__(
        self, *, endpoint: str, proxy: str | None, tls: Any, stall_s: float, connections_max: int
    ) -> None:
        # What to show is decided elsewhere.
        super().__init__(
            token="anon",
            project="",
            endpoint_url=endpoint,
            skip_instance_cache=True,
            use_listings_cache=False,
            loop=get_loop(),
        )
        self._connecting = {"ssl": tls, "limit": connections_max}
        self._asking: dict[str, Any] = {
            "proxy": proxy,
            "allow_redirects": False,
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=stall_s),
        }

    async def _set_session(self) -> Any:
        if self._session is None:
            # As late as this, because it belongs to the loop.
            connector = aiohttp.TCPConnector(**self._connecting)
            self.session_kwargs = {"connector": connector, "auto_decompress": False, "trust_env": False}
        return await super()._set_session()

    def url(self, path: str, names: tuple[str, ...]) -> str:
        """Return the URL of path below the API's root, in which each `{}` is one of names."""
        return str(self._format_path(path, names))

    def opened(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: Any = None,
    ) -> "_Opened":
        """Return one request, to be made and ended by `async with`."""
        return _Opened(
            self,
            {
                "method": method,
                "url": url,
                "params": params,
                "headers": headers,
                "data": body,
                **self._asking,
            },
        )

    async def small(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and the whole of an answer."""
        # Sent in pieces: other requests share the loop.
        sent = io.BytesIO(body) if body else None
        async with self.opened(method, url, params, headers, sent) as reply:
            found = bytearray()
            while piece := await reply.content.read(PIECE_BYTES):
                found += piece
                if len(found) > _ANSWER_BYTES_MAX:
                    raise ValueError("too long an answer")
            return reply.status, reply.headers, bytes(found)

    def shut(self) -> None:
        """Close the connections; from any thread."""
        session, self._session = self._session, None
        if session is not None:
            self.close_session(self.loop, session)


class _Opened:
    """One answer, whose connection goes back when it is read, and is closed otherwise."""

    def __init__(self, fs: GcsSession, request: dict[str, Any]) -> None:
        self._fs, self._request = fs, request

    async def __aenter__(self) -> aiohttp.ClientResponse:
        session = await self._fs._set_session()
        reply: aiohttp.ClientResponse = await session.request(**self._request)
        self._reply = reply
        return reply

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if error is None and self._reply.content.at_eof():
            self._reply.release()
        else:
            self._reply.close()
