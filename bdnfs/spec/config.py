"""The node's config: where the cache is, what is upstream, which secrets. Read once, frozen, handed down."""

import os
import pwd
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from bdnfs.core.errors import SpecError
from bdnfs.core.units import GIB, MIB, format_size, parse_duration, parse_size
from bdnfs.spec.cluster import ClusterConfig, parse_cluster
from bdnfs.spec.document import read_document
from bdnfs.spec.fields import Position, absolute_path, mapping, shown, text
from bdnfs.spec.mirror import MirrorConfig, parse_mirror
from bdnfs.spec.secret import Secret, SecretsConfig, read_secret
from bdnfs.spec.serve import ServeConfig, parse_serve
from bdnfs.spec.upstream import (
    HUB_ENDPOINT,
    OidcConfig,
    UpstreamConfig,
    aws_variables,
    azure_variables,
    ca_bundle,
    google_variables,
    hub_endpoint,
    hub_token,
    hub_token_file,
    is_true,
    oidc_config,
    proxy_variables,
)

__all__ = ["CacheConfig", "Config", "Secret", "SecretsConfig", "UpstreamConfig", "load_config", "read_secret"]

SYSTEM_CONFIG = "/etc/bdnfs/config.yaml"
SYSTEM_SECRETS = "/secrets"
# A few chunks in flight must fit, or nothing can ever be fetched.
CAPACITY_BYTES_MIN = 64 * MIB
FETCHES_MAX = 512
ATTEMPTS_MAX = 100
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)

T = TypeVar("T")


class CacheConfig(msgspec.Struct, frozen=True):
    """The node cache.

    directory:      absolute
    capacity_bytes: hard cap on bytes present; None: the disk less the reserve
    reserve_bytes:  free disk space that is never used
    """

    directory: str
    capacity_bytes: int | None = None
    reserve_bytes: int = GIB


class Config(msgspec.Struct, frozen=True):
    """All that one node is told; msgspec carries it, secrets included, to a child's stdin and back.

    offline:         nothing is asked of upstream (HF_HUB_OFFLINE)
    read_deadline_s: seconds a reader of a mount waits for a chunk before it gets an error
    path:            the file it was read from, None without one
    """

    cache: CacheConfig
    secrets: SecretsConfig
    upstream: UpstreamConfig = UpstreamConfig()
    mirror: MirrorConfig | None = None
    serve: ServeConfig = ServeConfig()
    cluster: ClusterConfig | None = None
    tenant: str | None = None
    offline: bool = False
    read_deadline_s: float = 300.0
    path: str | None = None


def load_config(explicit: str | None, environment: Mapping[str, str]) -> Config:
    """Return the config of this node for this user.

    The first that is there: explicit (`--config`), $BDNFS_CONFIG, the user's, the system's; with none
    of them everything has a default. Raises SpecError, naming the place, for whatever is wrong, and
    CredentialsError for a token that can't be sent.
    """
    home = _home(environment)
    path = _config_path(explicit, environment, home)
    document = read_document(path, "the config") if path else None
    return parse_config(document, path, environment)


def parse_config(data: object, path: str | None, environment: Mapping[str, str]) -> Config:
    """Return the Config in data (a document's plain content, None: all defaults) and environment."""
    home = _home(environment)
    at = Position(path or "config")
    known = ("cache", "mirror", "serve", "cluster", "secrets", "oidc", "tenant", "upstream", "read_deadline")
    found = mapping({} if data is None else data, known, at)
    _needs_mirror(found, at)
    return Config(
        cache=_cache(found, at, environment, home),
        secrets=_secrets(found, at, environment, home),
        upstream=_upstream(found, at, environment, home),
        mirror=_field(found, "mirror", at, lambda value, at: parse_mirror(value, at, home), None),
        serve=_field(
            found, "serve", at, lambda value, at: parse_serve(value, at, home, _tenant), ServeConfig()
        ),
        cluster=_field(found, "cluster", at, lambda value, at: parse_cluster(value, at, home), None),
        tenant=_field(found, "tenant", at, _tenant, None),
        offline=is_true(environment.get("HF_HUB_OFFLINE")),
        read_deadline_s=_field(found, "read_deadline", at, _wait, 300.0),
        path=path,
    )


def _needs_mirror(found: Mapping[str, object], at: Position) -> None:
    """Refuse a cluster without a mirror: only the digests of a mirror's version tell a peer's bytes from others."""
    if "cluster" in found and "mirror" not in found:
        raise SpecError(
            f"{at.key('cluster')}: needs a mirror, for its digests are what peers' bytes are checked against; "
            "write mirror: <url>, the same on every node"
        )


def _cache(
    found: Mapping[str, object], at: Position, environment: Mapping[str, str], home: str
) -> CacheConfig:
    at = at.key("cache")
    cache = mapping(found.get("cache", {}), ("directory", "capacity", "reserve"), at)
    directory = environment.get("BDNFS_CACHE_DIR")
    if directory:
        directory = absolute_path(directory, Position("BDNFS_CACHE_DIR"), home)
    else:
        default = os.path.join(_xdg(environment, "XDG_CACHE_HOME", home, ".cache"), "bdnfs")
        directory = _field(cache, "directory", at, lambda value, at: absolute_path(value, at, home), default)
    capacity = _field(cache, "capacity", at, _size, None)
    if capacity is not None and capacity < CAPACITY_BYTES_MIN:
        raise SpecError(
            f"{at.key('capacity')}: {format_size(capacity)} is too little to hold even the chunks in flight; "
            f"give at least {format_size(CAPACITY_BYTES_MIN)}, or leave it out for no cap"
        )
    return CacheConfig(directory, capacity, _field(cache, "reserve", at, _size, GIB))


def _secrets(
    found: Mapping[str, object], at: Position, environment: Mapping[str, str], home: str
) -> SecretsConfig:
    at = at.key("secrets")
    secrets = mapping(found.get("secrets", {}), ("directory",), at)
    default = SYSTEM_SECRETS
    if not os.path.isdir(default):
        default = os.path.join(_xdg(environment, "XDG_CONFIG_HOME", home, ".config"), "bdnfs", "secrets")
    return SecretsConfig(
        _field(secrets, "directory", at, lambda value, at: absolute_path(value, at, home), default)
    )


def _upstream(
    found: Mapping[str, object], at: Position, environment: Mapping[str, str], home: str
) -> UpstreamConfig:
    root, at = at, at.key("upstream")
    upstream = mapping(found.get("upstream", {}), ("hf_endpoint", "fetches", "stall", "attempts"), at)
    endpoint = environment.get("HF_ENDPOINT", "").strip()
    if endpoint:
        endpoint = hub_endpoint(endpoint, "HF_ENDPOINT")
    else:
        endpoint = _field(
            upstream,
            "hf_endpoint",
            at,
            lambda value, at: hub_endpoint(text(value, at), str(at)),
            HUB_ENDPOINT,
        )
    token = hub_token(environment, home)
    return UpstreamConfig(
        hf_endpoint=endpoint,
        hf_token=token,
        hf_login=hub_token_file(environment, home) if token else None,
        aws=aws_variables(environment),
        azure=azure_variables(environment),
        google=google_variables(environment),
        oidc=_oidc(found, root, environment, home),
        proxies=proxy_variables(environment),
        ca_bundle=ca_bundle(environment),
        fetches_max=_field(upstream, "fetches", at, lambda value, at: _count(value, at, FETCHES_MAX), 16),
        stall_s=_field(upstream, "stall", at, _wait, 30.0),
        attempts=_field(upstream, "attempts", at, lambda value, at: _count(value, at, ATTEMPTS_MAX), 5),
    )


def _oidc(found: Mapping[str, object], at: Position, environment: Mapping[str, str], home: str) -> OidcConfig:
    at = at.key("oidc")
    oidc = mapping(found.get("oidc", {}), OidcConfig.__struct_fields__, at)
    return oidc_config(
        {name: absolute_path(value, at.key(name), home) for name, value in oidc.items()}, environment
    )


def _config_path(explicit: str | None, environment: Mapping[str, str], home: str) -> str | None:
    # What is named has to be there; what is only looked for may be missing.
    named = explicit or environment.get("BDNFS_CONFIG")
    if named:
        return os.path.join(home, named[2:]) if named.startswith("~/") else named
    user = os.path.join(_xdg(environment, "XDG_CONFIG_HOME", home, ".config"), "bdnfs", "config.yaml")
    return next((path for path in (user, SYSTEM_CONFIG) if os.path.lexists(path)), None)


def _field(
    found: Mapping[str, object], name: str, at: Position, read: Callable[[object, Position], T], default: T
) -> T:
    return read(found[name], at.key(name)) if name in found else default


def _size(value: object, at: Position) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SpecError(f"{at}: expected a size such as 1.5TiB, found {shown(value)}")
    try:
        return parse_size(value)
    except SpecError as error:
        raise SpecError(f"{at}: {error}") from None


def _wait(value: object, at: Position) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise SpecError(f"{at}: expected a duration such as 30s or 5m, found {shown(value)}")
    try:
        seconds = parse_duration(value)
    except SpecError as error:
        raise SpecError(f"{at}: {error}") from None
    if seconds <= 0:
        raise SpecError(f"{at}: {shown(value)} leaves no time at all; give a duration such as 30s or 5m")
    return seconds


def _count(value: object, at: Position, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise SpecError(f"{at}: expected a number from 1 to {most}, found {shown(value)}")
    return value


def _tenant(value: object, at: Position) -> str:
    return check_tenant(text(value, at), str(at))


def check_tenant(tenant: str, where: str) -> str:
    """Return tenant if it can name one; raise SpecError, naming where it stands, if not."""
    if not _TENANT.fullmatch(tenant):
        raise SpecError(
            f"{where}: {shown(tenant)} can't name a tenant: up to 63 letters, digits, '.', '_', '-'"
        )
    return tenant


def _home(environment: Mapping[str, str]) -> str:
    home = environment.get("HOME", "")
    if home.startswith("/"):
        return home
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        # A uid without an entry, as in many containers: nothing of the user's can be there.
        return "/"


def _xdg(environment: Mapping[str, str], name: str, home: str, below: str) -> str:
    # The XDG base directory specification: relative values are to be ignored.
    value = environment.get(name, "")
    return value if value.startswith("/") else os.path.join(home, below)
