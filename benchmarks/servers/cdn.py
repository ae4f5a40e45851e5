"""Where LFS files come from: signed URLs that expire, on a port of its own, single ranges."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from urllib.parse import quote, urlencode

from benchmarks.servers.repositories import Repositories, Repository
from benchmarks.servers.serving import Exchange

_PLACE = re.compile(r"/cdn/(?:models|datasets)/.+/([0-9a-f]{64})/[^/]+")
_DENIED = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>{}</Message></Error>\n'
)


class Cdn:
    """Gives out links and answers them; `url` is set once the CDN's port is known.

    lifetime_s: how long a link is good for, in seconds of `clock`
    """

    def __init__(self, repositories: Repositories, lifetime_s: float, clock: Callable[[], float]) -> None:
        self.url = ""
        self.lifetime_s = lifetime_s
        self._clock = clock
        self._repositories = repositories
        self._keys = [secrets.token_bytes(32)]

    def link(self, repository: Repository, sha256: str, path: str) -> str:
        """Return a signed URL for the file's content."""
        name = quote(path.rpartition("/")[2] or "file", safe="")
        place = f"/cdn/{repository.kind}/{quote(repository.name)}/{sha256}/{name}"
        expires = str(int(self._clock() + self.lifetime_s))
        signature = _sign(self._keys[-1], place, expires)
        query = urlencode({"Expires": expires, "Signature": signature, "Key-Pair-Id": "K1"})
        return f"{self.url}{place}?{query}"

    def expire_links(self) -> None:
        """Make every link given out so far an expired one."""
        self._keys.append(secrets.token_bytes(32))

    def answer(self, exchange: Exchange) -> None:
        """Answer one request to the CDN: the content, or 403 with a body in XML."""
        if authorization := exchange.headers.get("Authorization"):
            exchange.listener.ledger.note_stray(authorization)
        signature, expires = exchange.query.get("Signature", ""), exchange.query.get("Expires", "")
        signed_with = [key for key in self._keys if _sign(key, exchange.target, expires) == signature]
        match = _PLACE.fullmatch(exchange.target)
        if match is None or not signed_with:
            _deny(exchange, "Access denied")
        elif signed_with[0] is not self._keys[-1] or int(expires) < self._clock():
            _deny(exchange, "Request has expired")
        else:
            exchange.respond_file(self._repositories.object(match[1]), f'"{match[1]}"', {})


def _sign(key: bytes, place: str, expires: str) -> str:
    return hmac.new(key, f"{place} {expires}".encode(), hashlib.sha256).hexdigest()


def _deny(exchange: Exchange, reason: str) -> None:
    exchange.respond(403, _DENIED.format(reason).encode(), {"Content-Type": "application/xml"})
