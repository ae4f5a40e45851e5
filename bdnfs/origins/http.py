"""HTTP to one upstream: urllib3's pools, proxies and certificates, and redirects of our own."""

import logging
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3

from bdnfs.core.errors import SpecError, UpstreamError
from bdnfs.origins.answers import network_error, root_cause, shown
from bdnfs.origins.certificates import ssl_context
from bdnfs.origins.connections import HttpPool, HttpsPool, StaleConnectionError
from bdnfs.origins.credentials import Credential
from bdnfs.origins.proxies import proxy_for
from bdnfs.origins.reply import FOREIGN, Hop, Reply

CONNECT_TIMEOUT_S = 10.0
REDIRECTS_MAX = 10
_REDIRECTS = frozenset((301, 302, 303, 307, 308))

# At DEBUG urllib3 logs whole URLs, and a signed URL is a secret.
logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)


@dataclass(frozen=True)
class HttpConfig:
    """How to reach an upstream.

    proxies:   as `proxies.proxy_for` reads them
    ca_bundle: a PEM file of the authorities to trust instead of the system's, or None
    stall_s:   seconds without a byte, or in which only a trickle came, until a stream is given up
    """

    proxies: Mapping[str, str] = field(default_factory=dict)
    ca_bundle: str | None = None
    stall_s: float = 30.0
    connections_max: int = 32


class HttpClient:
    """Requests to one upstream and to wherever it redirects; safe from several threads."""

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
        self._managers: dict[tuple[str, str | None], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def open(
        self,
        method: str,
        url: str,
        doing: str,
        headers: Mapping[str, str] | None = None,
        authorization: tuple[str, Credential[str]] | None = None,
        *,
        body: bytes | None = None,
        follow: bool = True,
    ) -> Reply:
        """Send one request, follow its redirects, and return the answer, whatever its status.

        doing:         what errors say was being done
        authorization: the origin (`origin_of`) that may see it, and whose `current` is the header's value
        """
        hops: list[Hop] = []
        while True:
            sent = {"Accept-Encoding": "identity", "User-Agent": "bdnfs", **(headers or {})}
            if authorization and origin_of(url) == authorization[0]:
                sent["Authorization"] = authorization[1].current()
            reply = Reply(self._send(method, url, doing, sent, body), url, hops, doing)
            target = reply.headers.get("Location")
            if not follow or reply.status not in _REDIRECTS or not target:
                return reply
            reply.close()
            target = _next_place(url, target, hops, doing)
            hops.append(Hop(url, reply.status, reply.headers, target))
            url = target

    def close(self) -> None:
        """Close the connections that are idle; those in use end with their answers."""
        with self._lock:
            managers = list(self._managers.values())
            self._managers.clear()
        for manager in managers:
            manager.clear()

    def _send(
        self, method: str, url: str, doing: str, headers: dict[str, str], body: bytes | None
    ) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=self._config.stall_s)
        while True:
            try:
                return self._manager(url).urlopen(
                    method,
                    url,
                    headers=headers,
                    body=body,
                    timeout=timeout,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
            except FOREIGN as error:
                # The server ended a kept connection just as it was taken: says nothing about the server.
                # There are only so many of them, so this ends.
                if not isinstance(root_cause(error), StaleConnectionError):
                    raise network_error(doing, url, error) from None

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = proxy_for(url, self._config.proxies)
        key = urlsplit(url).scheme, proxy
        with self._lock:
            if key not in self._managers:
                self._managers[key] = self._new_manager(*key)
            return self._managers[key]

    def _new_manager(self, scheme: str, proxy: str | None) -> urllib3.PoolManager:
        options: dict[str, Any] = {"num_pools": 8, "maxsize": self._config.connections_max}
        if scheme == "https":
            options["ssl_context"] = self._ssl_context
        if proxy is None:
            manager = urllib3.PoolManager(**options)
        else:
            parts = urlsplit(proxy)
            if parts.scheme not in ("http", "https"):
                raise SpecError(
                    f"proxy {shown(proxy)}: only http and https proxies are spoken; name one of those"
                )
            user = f"{parts.username}:{parts.password or ''}" if parts.username else None
            manager = urllib3.ProxyManager(
                f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
                proxy_headers=urllib3.make_headers(proxy_basic_auth=user),
                proxy_ssl_context=self._ssl_context if parts.scheme == "https" else None,
                **options,
            )
        manager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}
        return manager

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        return ssl_context(self._config.ca_bundle)


def origin_of(url: str) -> str:
    """Return scheme, host and port of url: what credentials are good for."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{port}"


def _next_place(url: str, target: str, hops: list[Hop], doing: str) -> str:
    said = f"{doing}: {shown(url)} redirects"
    try:
        target = urljoin(url, target)
        scheme = urlsplit(target).scheme
        origin_of(target)
    except ValueError:
        raise UpstreamError(f"{said} to a malformed URL; check the server") from None
    if scheme not in ("http", "https"):
        raise UpstreamError(f"{said} to {scheme or 'no scheme'}://, which is not followed; check the server")
    if urlsplit(url).scheme == "https" and scheme == "http":
        raise UpstreamError(f"{said} to {shown(target)} without TLS, which is not followed; check the server")
    if any(target == hop.url for hop in hops) or target == url:
        raise UpstreamError(f"{said} in a loop, back to {shown(target)}; check the server")
    if len(hops) + 1 >= REDIRECTS_MAX:
        raise UpstreamError(
            f"{said} to {shown(target)}, the {REDIRECTS_MAX}th redirect in a row; check the server"
        )
    return target
