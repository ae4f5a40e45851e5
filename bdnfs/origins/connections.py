"""urllib3's connections with a floor under what they read, and pools of them."""

import errno
import os
from http.client import HTTPResponse
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from bdnfs.origins.floor import FlooredResponse


class _Kept:
    """What connections add to urllib3's: the floor, and whether one kept for reuse was closed meanwhile."""

    response_class: type[HTTPResponse] = FlooredResponse
    _answers = 0

    def connect(self) -> None:
        self._answers = 0
        super().connect()  # type: ignore[misc]

    def send(self, data: Any) -> None:
        try:
            super().send(data)  # type: ignore[misc]
        except (ConnectionResetError, BrokenPipeError):
            raise self._lost() from None

    def getresponse(self) -> Any:
        try:
            response = super().getresponse()  # type: ignore[misc]
        except (ConnectionResetError, BrokenPipeError):
            raise self._lost() from None
        self._answers += 1
        return response

    def _lost(self) -> OSError:
        kind = StaleConnectionError if self._answers else ConnectionResetError
        return kind(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


class StaleConnectionError(ConnectionResetError):
    """The server ended a connection that had answered before: it may be so for every kept one."""


class _HttpConnection(_Kept, HTTPConnection):
    pass


class _HttpsConnection(_Kept, HTTPSConnection):
    pass


class HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection
