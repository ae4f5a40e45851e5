"""How `bdnfs serve-volumes` listens, and to whom: `serve` in the config."""

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import msgspec

from bdnfs.core.errors import SpecError
from bdnfs.core.units import format_duration, parse_duration
from bdnfs.spec.auth import is_secret_name
from bdnfs.spec.fields import Position, absolute_path, mapping, shown, text

PORT = 7890
CREDENTIALS_S_MAX = 12 * 3600.0  # as long as S3's own can last
_FIELDS = ("listen", "keys", "tls", "advertise", "credentials_for", "key_file")


class ServeConfig(msgspec.Struct, frozen=True):
    """The service.

    host, port:    where it listens; host: a name or an address, port 0: any that is free
    keys:          the name of the secret that is a tenant's API key, by tenant
    cert, key:     paths of the PEM files for TLS, or None
    advertise:     the URL that clients are given, without a path; None: the one they came to
    credentials_s: seconds for which credentials open objects
    key_file:      what the service signs with, None: made anew at each start
    """

    host: str = "127.0.0.1"
    port: int = PORT
    keys: dict[str, str] = {}
    cert: str | None = None
    key: str | None = None
    advertise: str | None = None
    credentials_s: float = 900.0
    key_file: str | None = None


def parse_serve(
    value: object, at: Position, home: str, tenant: Callable[[object, Position], str]
) -> ServeConfig:
    """Return the service that a config describes; tenant reads a tenant's name. Raises SpecError."""
    found = mapping(value, _FIELDS, at)
    host, port = parse_listen(found.get("listen", f"127.0.0.1:{PORT}"), at.key("listen"))
    tls = mapping(found.get("tls", {}), ("cert", "key"), at.key("tls"))
    if tls and len(tls) != 2:
        raise SpecError(f"{at.key('tls')}: names one of cert and key; TLS needs both")
    paths = {name: absolute_path(tls[name], at.key("tls").key(name), home) for name in tls}
    key_file = found.get("key_file")
    return ServeConfig(
        host,
        port,
        _keys(found.get("keys", {}), at.key("keys"), tenant),
        paths.get("cert"),
        paths.get("key"),
        _advertise(found["advertise"], at.key("advertise")) if "advertise" in found else None,
        _lifetime(found.get("credentials_for", "15m"), at.key("credentials_for")),
        absolute_path(key_file, at.key("key_file"), home) if key_file is not None else None,
    )


def parse_listen(value: object, at: Position) -> tuple[str, int]:
    """Return the host and port in `HOST:PORT`; raise SpecError for anything else."""
    given = text(value, at)
    host, colon, port = given.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    sound = colon and host and (bracketed or ":" not in host) and port.isascii() and port.isdecimal()
    if not sound or len(port) > 5 or int(port) > 65535:
        raise SpecError(
            f"{at}: expected HOST:PORT such as 127.0.0.1:{PORT} or [::]:{PORT}, found {shown(given)}"
        )
    return host[1:-1] if bracketed else host, int(port)


def _keys(value: object, at: Position, tenant: Callable[[object, Position], str]) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise SpecError(f"{at}: expected a secret's name for each tenant, found {shown(value)}")
    found: dict[str, str] = {}
    for name, secret in value.items():
        place = at.key(name if isinstance(name, str) else str(shown(name)))
        found[tenant(name, place)] = _secret(secret, place)
    if len(set(found.values())) < len(found):
        raise SpecError(f"{at}: names one secret for several tenants; give each a key of its own")
    return found


def _secret(value: object, at: Position) -> str:
    name = text(value, at)
    if not is_secret_name(name):
        raise SpecError(f"{at}: {shown(name)} can't name a secret; give the secret's name, never its value")
    return name


def _advertise(value: object, at: Position) -> str:
    given = text(value, at)
    try:
        parts = urlsplit(given)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        sound = False
    if not sound or parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
        raise SpecError(
            f"{at}: expected a URL such as https://volumes.example, without a path, found {shown(given)}"
        )
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _lifetime(value: object, at: Position) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise SpecError(f"{at}: expected a duration such as 15m, found {shown(value)}")
    try:
        seconds = parse_duration(value)
    except SpecError as error:
        raise SpecError(f"{at}: {error}") from None
    if not 1 <= seconds <= CREDENTIALS_S_MAX:
        raise SpecError(f"{at}: {shown(value)} is not from 1 s to {format_duration(CREDENTIALS_S_MAX)}")
    return seconds
