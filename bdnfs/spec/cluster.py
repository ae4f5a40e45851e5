"""Which cluster this node belongs to, and what it does there: `cluster` in the config."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

import msgspec

from bdnfs.core.errors import SpecError
from bdnfs.core.units import parse_size
from bdnfs.spec.fields import Position, absolute_path, mapping, shown, text, texts
from bdnfs.spec.hostlist import HOSTS_MAX, expand_hosts
from bdnfs.spec.secret import Secret
from bdnfs.spec.serve import parse_listen

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

PORT = 7891
_FIELDS = (
    "name",
    "members",
    "redis",
    "listen",
    "advertise",
    "token_file",
    "tls",
    "share",
    "serve_rate",
    "while_job",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_BITS = re.compile(r"\s*([0-9.]+)\s*([kMG])bit", re.ASCII)


class RedisConfig(msgspec.Struct, frozen=True):
    """The Redis or Valkey that holds the leases.

    tls:      it is spoken to through TLS
    ca:       path of the PEM file its certificate must lead to, None: the system's
    username: None: Redis's default user
    """

    host: str
    port: int = 6379
    tls: bool = False
    database: int = 0
    username: str | None = None
    password: Secret | None = None
    ca: str | None = None

    def __str__(self) -> str:
        """As it may be shown: without who logs in, and how."""
        return f"redis{'s' if self.tls else ''}://{_joined(self.host, self.port)}/{self.database}"


class TlsConfig(msgspec.Struct, frozen=True):
    """Paths of PEM files: this node's certificate and key, and the CA that every member's certificate leads to."""

    cert: str
    key: str
    ca: str


class ClusterConfig(msgspec.Struct, frozen=True):
    """The cluster, and this node's part in it.

    name:          of the cluster
    host, port:    where this node listens for its peers
    members:       HOST:PORT of every member, in the order given; empty: they hold leases in redis
    advertise:     HOST:PORT by which others reach this node, None: this machine's name and port
    token_file:    path of the file with the token that all members share, or None
    tls:           for mutual TLS, or None
    share_bytes:   disk for chunks that this node owns for others, None: not said
    serve_rate:    bytes per second that it sends at most, None: no cap
    while_job:     what serving does while a job runs here
    """

    name: str = "default"
    host: str = "127.0.0.1"
    port: int = PORT
    members: tuple[str, ...] = ()
    redis: RedisConfig | None = None
    advertise: str | None = None
    token_file: str | None = None
    tls: TlsConfig | None = None
    share_bytes: int | None = None
    serve_rate: int | None = None
    while_job: Literal["throttle", "pause"] = "throttle"


def parse_cluster(value: object, at: Position, home: str) -> ClusterConfig:
    """Return the cluster that a config describes; raise SpecError, naming the place, for what can't be one."""
    found = mapping(value, _FIELDS, at)
    if ("members" in found) == ("redis" in found):
        raise SpecError(f"{at}: needs one of members (a list of hosts) and redis (a URL); name exactly one")
    host, port = parse_listen(found.get("listen", f"127.0.0.1:{PORT}"), at.key("listen"))
    token, tls = _authentication(found, host, at, home)
    advertise = found.get("advertise")
    return ClusterConfig(
        _name(found.get("name", "default"), at.key("name")),
        host,
        port,
        _members(found["members"], port, at.key("members")) if "members" in found else (),
        _redis(found["redis"], at.key("redis"), home) if "redis" in found else None,
        _address(text(advertise, at.key("advertise")), port, at.key("advertise")) if advertise else None,
        token,
        tls,
        _size(found["share"], at.key("share")) if "share" in found else None,
        _rate(found["serve_rate"], at.key("serve_rate")) if "serve_rate" in found else None,
        _while_job(found.get("while_job", "throttle"), at.key("while_job")),
    )


def is_address(value: str) -> bool:
    """Return whether value is HOST:PORT by which a node can be reached; an IPv6 host stands in brackets."""
    host, _, port = value.rpartition(":")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", port, re.ASCII) or int(port) > 65535:
        return False
    if host.startswith("["):
        return host.endswith("]") and _ip(host[1:-1]) == 6
    return _HOST.fullmatch(host) is not None and ".." not in host


def _address_in(host: str) -> "IPv4Address | IPv6Address | None":
    """Return the address that host is, None for a name."""
    import ipaddress  # late: most nodes are in no cluster

    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _ip(host: str) -> int | None:
    address = _address_in(host)
    return address.version if address is not None else None


def _is_loopback(host: str) -> bool:
    address = _address_in(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _authentication(
    found: Mapping[str, object], host: str, at: Position, home: str
) -> tuple[str | None, TlsConfig | None]:
    if "token_file" in found and "tls" in found:
        raise SpecError(f"{at}: names both token_file and tls; either alone says who is a member, keep one")
    if "token_file" in found:
        return absolute_path(found["token_file"], at.key("token_file"), home), None
    if "tls" in found:
        at = at.key("tls")
        tls = mapping(found["tls"], ("cert", "key", "ca"), at)
        missing = [name for name in ("cert", "key", "ca") if name not in tls]
        if missing:
            raise SpecError(f"{at}: has no {missing[0]}; mutual TLS needs cert, key and ca")
        return None, TlsConfig(**{name: absolute_path(tls[name], at.key(name), home) for name in tls})
    if not _is_loopback(host):
        raise SpecError(
            f"{at.key('listen')}: {shown(host)} can be reached from other machines, and nothing says who may; "
            f"name a token_file or tls, or listen on 127.0.0.1"
        )
    return None, None


def _name(value: object, at: Position) -> str:
    name = text(value, at)
    if not _NAME.fullmatch(name):
        raise SpecError(f"{at}: {shown(name)} can't name a cluster: up to 63 letters, digits, '.', '_', '-'")
    return name


def _members(value: object, port: int, at: Position) -> tuple[str, ...]:
    """Each entry is a host or an address, or a Slurm list of hosts with or without a port."""
    given = [text(value, at)] if isinstance(value, str) else texts(value, at, count_max=HOSTS_MAX)
    found = [address for entry in given for address in _entry(entry, port, at)]
    if not found:
        raise SpecError(f"{at}: names no member; write at least this node's own address")
    if len(found) > HOSTS_MAX:
        raise SpecError(f"{at}: names {len(found)} members; at most {HOSTS_MAX} are taken")
    twice = [address for address, count in Counter(found).items() if count > 1]
    if twice:
        raise SpecError(f"{at}: names {shown(twice[0])} twice; name each member once")
    return tuple(found)


def _entry(entry: str, port: int, at: Position) -> list[str]:
    if entry.startswith("[") or _ip(entry) == 6:
        return [_address(entry, port, at)]
    return [_address(host, port, at) for host in expand_hosts(entry, str(at))]


def _address(given: str, port: int, at: Position) -> str:
    """Return given as HOST:PORT, with port where it names none; raise SpecError if it can't be reached."""
    bare = _ip(given) == 6
    whole = f"[{given}]:{port}" if bare else given
    if (given.startswith("[") and given.endswith("]")) or (":" not in given):
        whole = f"{given}:{port}"
    if not is_address(whole):
        raise SpecError(f"{at}: {shown(given)} is no address of a node; write HOST:PORT such as node1:{PORT}")
    host = whole.rpartition(":")[0].strip("[]")
    found = _address_in(host)
    if found is not None and found.is_unspecified:
        raise SpecError(f"{at}: {shown(given)} stands for any address; name the one that peers can reach")
    return whole.lower()


def _redis(value: object, at: Position, home: str) -> RedisConfig:
    ca = None
    if not isinstance(value, str):
        found = mapping(value, ("url", "ca"), at)
        if "url" not in found:
            raise SpecError(f"{at}: has no url; write redis: rediss://user:password@host:6379/0")
        ca = absolute_path(found["ca"], at.key("ca"), home) if "ca" in found else None
        value, at = found["url"], at.key("url")
    if not isinstance(value, str):
        raise SpecError(f"{at}: expected a URL such as redis://host:6379/0, found {shown(value)}")
    # It may hold a password: nothing of it is shown.
    wrong = SpecError(
        f"{at}: is no URL of a Redis or Valkey; write redis://host:6379/0, or "
        "rediss://user:password@host:6379/0 with TLS and '%' codes for what isn't a letter or digit"
    )
    try:
        url = urlsplit(value)
        port, path = url.port, url.path.removeprefix("/")
    except ValueError:
        raise wrong from None
    host, database = url.hostname or "", path or "0"
    sound = url.scheme in ("redis", "rediss") and not url.query and not url.fragment and port != 0
    if (
        not sound
        or not (_HOST.fullmatch(host) or _ip(host))
        or not re.fullmatch(r"[0-9]{1,4}", database, re.ASCII)
    ):
        raise wrong
    if bool(url.username) and not url.password:
        raise SpecError(f"{at}: names a user without a password; write user:password@ or neither")
    if ca and url.scheme != "rediss":
        raise SpecError(f"{at}: names a ca, but without TLS there is none to check; write rediss://…")
    return RedisConfig(
        host,
        port or 6379,
        url.scheme == "rediss",
        int(database),
        unquote(url.username) if url.username else None,
        Secret(unquote(url.password)) if url.password else None,
        ca,
    )


def _while_job(value: object, at: Position) -> Literal["throttle", "pause"]:
    match value:
        case "throttle" | "pause":
            return value
    raise SpecError(f"{at}: expected throttle or pause, found {shown(value)}")


def _size(value: object, at: Position) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SpecError(f"{at}: expected a size such as 500GiB, found {shown(value)}")
    try:
        return parse_size(value)
    except SpecError as error:
        raise SpecError(f"{at}: {error}") from None


def _rate(value: object, at: Position) -> int:
    """Return bytes per second for `10Gbit/s`, `500MB/s`, or either without its `/s`."""
    given = value.removesuffix("/s") if isinstance(value, str) else value
    bits = _BITS.fullmatch(given) if isinstance(given, str) else None
    rate = _size(f"{bits[1]}{bits[2]}B", at) // 8 if bits else _size(given, at)
    if rate <= 0:
        raise SpecError(f"{at}: {shown(value)} lets nothing through; set share: 0 to own nothing")
    return rate
