"""The whole service as one ASGI application: which call goes where, what is said of each."""

import time
from collections.abc import Callable

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bdnfs.core.errors import BdnfsError
from bdnfs.serve.api import Api, failed, failed_by
from bdnfs.serve.tenants import host_of, is_loopback

_SHOWN_CHARS_MAX = 300
# Longer than a connection's own limit (bdnfs.serve.lines): what ends is then the connection, not the answer. Over
# HTTP/2, which hypercorn speaks to who insists, a client may stop one stream of it.
_SEND_S = 30.0


class Service:
    """An ASGI application.

    asks_keys: False: whoever reaches it is served, so a name that is not this machine's gets nothing:
               a page in a browser here can make one of its own mean 127.0.0.1
    say:       takes one line for each request; no line holds a query, a token or a key
    bug:       returns what is to be said of an error that nobody expected
    """

    def __init__(
        self,
        api: Api,
        bucket: ASGIApp,
        *,
        asks_keys: bool,
        advertised_host: str | None,
        say: Callable[[str], None],
        bug: Callable[[BaseException], str],
    ) -> None:
        self._asks_keys, self._advertised_host = asks_keys, advertised_host
        self._say, self._bug = say, bug
        self._router = Router(
            [
                Route("/healthz", _healthy, methods=["GET"]),
                Route("/v1/volumes/token", api.token, methods=["POST"]),
                Route("/v1/volumes/resolve", api.resolve, methods=["POST"]),
                Mount("/v1", _unknown),
            ],
            redirect_slashes=False,
            default=bucket,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        began_s, told = time.monotonic(), _Told(send)
        state = scope["state"]
        try:
            await self._answer(scope, receive, told)
        except (ClientDisconnect, trio.TooSlowError):
            state["error"] = "the client went away, or takes nothing"
        except BdnfsError as error:
            state["error"] = str(error)
            await told.instead(failed_by(Request(scope), error), scope, receive)
        except Exception as error:
            state["error"] = self._bug(error)
            await told.instead(failed(Request(scope), 500, "a bug in bdnfs"), scope, receive)
        finally:
            self._say(_line(scope, told, time.monotonic() - began_s))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = host_of(Request(scope).headers.get("host", ""))
        if not self._asks_keys and not is_loopback(host) and host != self._advertised_host:
            message = "this service asks for no API key, so it answers to localhost alone"
            await failed(Request(scope), 403, message)(scope, receive, send)
            return
        await self._router(scope, receive, send)


class _Told:
    """Passes an answer on, and knows how much of it went out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = self.sent_bytes = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.sent_bytes += len(message.get("body", b""))
        with trio.fail_after(_SEND_S):
            await self._send(message)

    async def instead(self, answer: Response, scope: Scope, receive: Receive) -> None:
        """Answer so, unless another answer has begun: that one is cut short."""
        if not self.status:
            await answer(scope, receive, self)


async def _healthy(request: Request) -> Response:
    return Response(b'{"status":"ok"}', media_type="application/json")


async def _unknown(scope: Scope, receive: Receive, send: Send) -> None:
    message = "there is no such call; POST /v1/volumes/token and POST /v1/volumes/resolve are"
    await failed(Request(scope), 404, message)(scope, receive, send)


def _line(scope: Scope, told: _Told, took_s: float) -> str:
    client, state = scope["client"], scope["state"]
    path = scope["raw_path"].decode("latin-1")
    words = [
        client[0] if client else "-",
        state.get("tenant", "-"),
        scope["method"],
        f"{path[:_SHOWN_CHARS_MAX]}{'…' if len(path) > _SHOWN_CHARS_MAX else ''}",
        str(told.status),
        f"{told.sent_bytes} B",
        f"{took_s:.3f} s",
    ]
    words += [
        f"{name}={state[name][:_SHOWN_CHARS_MAX]}" for name in ("ref", "refused", "error") if name in state
    ]
    return "".join(char if char.isprintable() else "?" for char in " ".join(words))
