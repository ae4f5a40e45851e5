"""One question to the Hub, asked on every hit of a branch: which commit is it now? Standard library only."""

import base64
import http.client
import json
from collections.abc import Mapping
from urllib.parse import unquote, urljoin, urlsplit

from bdnfs.core.errors import UNREADABLE, SpecError, UnavailableError, UpstreamError
from bdnfs.origins.answers import network_error, shown
from bdnfs.origins.certificates import ssl_context
from bdnfs.origins.floor import FlooredResponse
from bdnfs.origins.hub_api import DEFAULT_REVISION, HubRepository
from bdnfs.origins.proxies import proxy_for

_ANSWER_BYTES_MAX = 64 << 20
_REDIRECTS_MAX = 5


def branch_commit(
    endpoint: str,
    repo: str,
    kind: str,
    revision: str | None,
    token: str | None = None,
    *,
    timeout_s: float = 10.0,
    proxies: Mapping[str, str] | None = None,
    ca_bundle: str | None = None,
) -> str:
    """Return the commit that a branch or tag (None: main) of a Hub repository names now.

    kind is "model" or "dataset"; timeout_s bounds connecting and each wait for bytes. Raises as
    `Origin.resolve` does.
    """
    revision = revision or DEFAULT_REVISION
    repository = HubRepository(endpoint, repo, kind)
    doing = f"resolving {repository.name}@{revision}"
    url = repository.revision_url(revision)
    for _ in range(_REDIRECTS_MAX):
        status, headers, content = _get(url, doing, token, timeout_s, proxies or {}, ca_bundle)
        if status == 200:
            return repository.commit_in(_decoded(content), revision)
        target = _target(url, headers.get("Location") or url, doing)
        # A renamed repository redirects within the Hub; anything else is not a place for the token.
        if status not in (301, 302, 303, 307, 308) or target == url:
            raise repository.refusal(doing, url, status, headers, revision, with_token=token is not None)
        if urlsplit(target)[:2] != urlsplit(url)[:2]:
            raise UpstreamError(
                f"{doing}: {shown(url)} redirects to {shown(target)}; set HF_ENDPOINT to that host"
            )
        url = target
    raise UpstreamError(f"{doing}: {shown(url)} redirects in a loop; check HF_ENDPOINT")


def _target(url: str, location: str, doing: str) -> str:
    try:
        target = urljoin(url, location)
        urlsplit(target)
    except ValueError:
        raise UpstreamError(
            f"{doing}: {shown(url)} redirects to a malformed URL; check HF_ENDPOINT"
        ) from None
    return target


def _get(
    url: str,
    doing: str,
    token: str | None,
    timeout_s: float,
    proxies: Mapping[str, str],
    ca_bundle: str | None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    parts = urlsplit(url)
    headers = {"User-Agent": "bdnfs", "Accept-Encoding": "identity", "Connection": "close"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    connection: http.client.HTTPConnection | None = None
    try:
        proxy = proxy_for(url, proxies)
        via = urlsplit(proxy) if proxy else parts
        if via.scheme not in ("http", "https") or (proxy and via.scheme == "https"):
            raise SpecError(f"{doing}: {shown(proxy or url)} can't be used here; an http proxy can")
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                via.hostname or "", via.port, timeout=timeout_s, context=ssl_context(ca_bundle)
            )
        else:
            connection = http.client.HTTPConnection(via.hostname or "", via.port, timeout=timeout_s)
        connection.response_class = FlooredResponse
        if proxy:
            passed = _proxy_headers(via.username, via.password)
            if parts.scheme == "https":
                connection.set_tunnel(parts.hostname or "", parts.port, passed)
            else:
                target, headers = url, {**headers, **passed, "Host": parts.netloc}
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as response:
            content = response.read(_ANSWER_BYTES_MAX)
            if response.length:
                raise UnavailableError(
                    f"{doing}: {shown(url)} broke off in the middle of its answer; try again"
                )
            return response.status, response.headers, content
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise network_error(doing, url, error) from None
    finally:
        if connection is not None:
            connection.close()


def _proxy_headers(user: str | None, password: str | None) -> dict[str, str]:
    if not user:
        return {}
    said = f"{unquote(user)}:{unquote(password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(said.encode()).decode()}"}


def _decoded(content: bytes) -> object:
    try:
        return json.loads(content)
    except UNREADABLE:
        return None
