"""Where the mirror is: `mirror: <url>` in the config, or a mapping where it needs more than that."""

import os
from collections.abc import Callable

import msgspec

from bdnfs.core.errors import SpecError
from bdnfs.spec.auth import check_secret_name
from bdnfs.spec.fields import Position, mapping, shown, text
from bdnfs.spec.source import BUCKET_SCHEMES, parse_source

NAMESPACE = "weights"


class MirrorConfig(msgspec.Struct, frozen=True):
    """The mirror.

    url:         `s3://bucket/prefix` and the like, or an absolute directory
    secret_name: the secret that opens it, None: what opens sources of that scheme
    namespace:   of the volumes that sources become
    """

    url: str
    secret_name: str | None = None
    namespace: str = NAMESPACE


def parse_mirror(value: object, at: Position, home: str) -> MirrorConfig:
    """Return the mirror that a config names; raise SpecError for what can't be one."""
    if isinstance(value, str):
        return MirrorConfig(_url(value, at, home))
    from bdnfs.spec.volume import check_name  # late: most configs name a URL and no more

    found = mapping(value, ("url", "auth_secret_name", "namespace"), at)
    if "url" not in found:
        raise SpecError(f"{at}: has no url; write mirror: s3://bucket/prefix, or a directory")
    secret = found.get("auth_secret_name")
    namespace = text(found.get("namespace", NAMESPACE), at.key("namespace"))
    return MirrorConfig(
        _url(text(found["url"], at.key("url")), at.key("url"), home),
        _checked(check_secret_name, secret, at.key("auth_secret_name")) if secret else None,
        _checked(lambda name: check_name(name, "namespace", name), namespace, at.key("namespace")),
    )


def _checked(check: Callable[[str], str], value: object, at: Position) -> str:
    try:
        return check(text(value, at))
    except SpecError as error:
        raise SpecError(f"{at}: {error}") from None


def _url(value: str, at: Position, home: str) -> str:
    path = value.removeprefix("file://")
    path = os.path.join(home, path[2:]) if path.startswith("~/") else path
    if path.startswith("/"):
        return os.path.normpath(path)
    if value.partition("://")[0] not in BUCKET_SCHEMES:
        raise SpecError(
            f"{at}: {shown(value)} can't be a mirror; write s3://bucket/prefix (or gs, azure, r2, cw), or a "
            "directory from '/' or '~/' on"
        )
    try:
        return parse_source(value).text
    except SpecError as error:
        raise SpecError(f"{at}: {error}") from None
